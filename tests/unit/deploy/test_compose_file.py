"""What can be said of the compose files and the Dockerfile without a Docker daemon; `make test-compose` runs them."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
FILE = ROOT / "deploy/docker-compose.yml"
NODE_FILE = ROOT / "deploy/node.yml"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SETTING = re.compile(r"(?<!\$)\$\{(\w+)(?::?-([^}]*)|:\?[^}]*)?\}")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def services(file: Path) -> dict[str, dict[str, Any]]:
    """As they are when nothing is set."""
    text = SETTING.sub(lambda found: found[2] or "", file.read_text())
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


SERVICES = services(FILE)
NODE = services(NODE_FILE)["node"]
ALL = SERVICES | {"node": NODE}
OURS = {name for name, service in ALL.items() if service["image"].startswith("larder")}


def test_the_root_has_the_same_file() -> None:
    link = ROOT / "docker-compose.yml"
    assert link.is_symlink()
    assert link.resolve() == FILE


def test_compose_reads_it_with_nothing_set(tmp_path: Path) -> None:
    programs = [["docker", "compose"], ["docker-compose"]]
    command = next((argv for argv in programs if shutil.which(argv[0]) and _runs([*argv, "version"])), None)
    if command is None:
        pytest.skip("there is no Compose here")
    (tmp_path / "none.env").touch()
    only_defaults = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "DOCKER_CONFIG")}
    argv = [*command, "--env-file", str(tmp_path / "none.env"), "--profile", "demo", "--profile", "gpu", "config"]
    read = subprocess.run(argv, cwd=ROOT, env=only_defaults, capture_output=True, text=True, timeout=60, check=False)
    assert read.returncode == 0, read.stderr
    assert "variable is not set" not in read.stderr.lower()
    assert str(ROOT / "deploy/prometheus") in read.stdout, "paths do not count from the root"


def test_a_node_on_a_host_of_its_own_listens_on_loopback_until_told_and_needs_a_master() -> None:
    assert NODE["environment"]["LARDER_STORAGE_NODE_HOST"] in ("", None)
    assert "${LARDER_STORAGE_NODE_MASTER:?" in NODE_FILE.read_text()


def test_the_same_setting_has_the_same_default_in_both_files() -> None:
    defaults = [dict(SETTING.findall(file.read_text())) for file in (FILE, NODE_FILE)]
    shared = defaults[0].keys() & defaults[1].keys()
    assert "NODE_MEMORY" in shared
    assert {name: defaults[0][name] for name in shared} == {name: defaults[1][name] for name in shared}


def _runs(argv: list[str]) -> bool:
    return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("name", ALL)
def test_every_service_is_watched_confined_and_bounded(name: str) -> None:
    service = ALL[name]
    assert {"test", "interval", "timeout", "retries", "start_period"} <= service["healthcheck"].keys()
    assert service["read_only"] is True
    assert service["init"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["stop_grace_period"] == "30s"
    assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()
    assert {"max-size", "max-file"} <= service["logging"]["options"].keys()
    assert "privileged" not in service
    assert "network_mode" not in service or name == "node"


@pytest.mark.parametrize("name", SERVICES)
def test_what_others_wait_for_is_healthy_and_always_there(name: str) -> None:
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        assert condition == {"condition": "service_healthy"}
        assert "profiles" not in SERVICES[other]


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_published_beyond_loopback_by_default(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port


@pytest.mark.parametrize("name", ALL)
def test_every_image_has_a_version(name: str) -> None:
    image, _, tag = ALL[name]["image"].partition(":")
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), ALL[name]["image"]
    assert name not in OURS or tag == VERSION, f"{image}: the version is {VERSION}"


def test_pools_have_the_same_path_in_nodes_engines_and_on_the_host() -> None:
    for name, service in ALL.items():
        if name.startswith("node") or service.get("profiles"):
            [pools] = [each for each in service["volumes"] if isinstance(each, dict)]
            assert pools == {"type": "bind", "source": "/dev/shm", "target": "/dev/shm"}, name  # noqa: S108
            assert service["ulimits"] == {"memlock": "-1"}, name


def test_the_larder_command_finds_the_master_wherever_pools_are_mapped() -> None:
    for name, service in SERVICES.items():
        if name.startswith("node") or service.get("profiles"):
            assert service["environment"]["LARDER_MASTER"] == "master:50001", name
    assert NODE_FILE.read_text().count("${LARDER_STORAGE_NODE_MASTER:?") == 2


def test_folders_in_memory_belong_to_the_user_who_writes_there() -> None:
    """A runc before 1.2 gives them the mode of the image's folder, whatever `mode` says."""
    for name in ("prefill", "decode"):
        assert "/cache:uid=65532,gid=65532" in SERVICES[name]["tmpfs"]


def test_a_default_pool_fits_the_default_memory() -> None:
    for name, service in ALL.items():
        if name.startswith("node"):
            dram = int(re.fullmatch(r"(\d+)GB", service["environment"]["LARDER_STORAGE_NODE_DRAM"])[1])  # type: ignore[index]
            assert service["mem_limit"] == f"{dram + 1}g"


def test_no_password_is_written_down() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            assert not value or not re.search("KEY|TOKEN|PASSWORD|SECRET", variable), f"{name}: {variable}"
    grafana = SERVICES["grafana"]["environment"]
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_every_setting_is_in_the_example_with_its_default() -> None:
    example = dict(re.findall(r"^# ?(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    used = {found[1]: found[2] or "" for file in (FILE, NODE_FILE) for found in SETTING.finditer(file.read_text())}
    assert example == used


# -- the Dockerfile -------------------------------------------------------------------------------------------------


def stages() -> dict[str, str]:
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    whole = zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    return {name: f"FROM {base}\n{body}" for base, name, body in whole}


@pytest.mark.parametrize("stage", ["larder", "engine"])
def test_an_image_ends_as_a_user_that_is_not_root(stage: str) -> None:
    assert re.findall(r"^USER (\S+)$", stages()[stage], re.MULTILINE)[-1] == "65532:65532"


def test_base_images_have_versions_or_are_arguments() -> None:
    bases = [body.splitlines()[0].removeprefix("FROM ") for body in stages().values()]
    assert all(base in stages() or base.startswith("${") for base in bases)
    defaults = re.findall(r"^ARG \w+_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert all(default in stages() or re.search(r":\d+\.\d+", default) for default in defaults)
    assert len(defaults) == 2


def test_pip_settings_stay_out_of_the_image_of_the_services() -> None:
    assert "PIP_" not in stages()["larder"]
    assert "PIP_" not in stages()["runtime"]


@pytest.mark.parametrize("stage", stages())
def test_a_layer_leaves_no_package_cache(stage: str) -> None:
    for command in re.findall(r"^RUN (.*?[^\\])$", stages()[stage], re.MULTILINE | re.DOTALL):
        if "apt-get install" in command:
            assert "apt-get update" in command
            assert "--no-install-recommends" in command
            assert "rm -rf /var/lib/apt/lists/*" in command
        if "pip install" in command:
            assert command.count("pip install") == command.count("--no-cache-dir")
    assert not re.search(r"^(ADD|ONBUILD|MAINTAINER) ", stages()[stage], re.MULTILINE)


def test_the_build_sees_no_secrets_and_no_environments() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    for name in copied:
        assert any(name == each or each.startswith(f"{name}/") or name.startswith(f"{each}/") for each in allowed), name
