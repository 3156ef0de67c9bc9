"""The install commands of docs/vllm.md: what pip does to an environment that has vLLM, and what the package brings."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.docs.session import ROOT

pytestmark = pytest.mark.timeout(400)  # pip fetches what builds the packages
PAGE = (ROOT / "docs/vllm.md").read_text()
CLIENT = "pip install ./clients/python"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has vLLM, and whatever else this one has, but nothing of Larder's."""
    path = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", path], check=True)
    [site] = path.glob("lib/python*/site-packages")
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        is_ours = re.match(r"_?larder|__pycache__|_virtualenv|distutils", each.name)
        if not is_ours and not (site / each.name).exists():
            (site / each.name).symlink_to(each)
    return path


def run(*argv: str | Path) -> str:
    done = subprocess.run(list(map(str, argv)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_client_goes_into_an_environment_with_vllm_and_replaces_nothing(environment: Path) -> None:
    assert f"\n{CLIENT}\n" in PAGE
    pip = environment / "bin/pip"
    said = run(pip, *CLIENT.split()[1:])
    [installed] = re.findall("Successfully installed (.*)", said)
    assert re.fullmatch(r"larder-\S+", installed), said
    find = (
        "from importlib.metadata import entry_points\n"
        "[point] = entry_points(group='vllm.general_plugins', name='larder')\n"
        "print(point.load().__module__)"
    )
    assert run(environment / "bin/python", "-I", "-c", find) == "larder.vllm.plugin\n"
    [site] = environment.glob("lib/python*/site-packages")
    assert (site / "larder/py.typed").exists()
    [licence] = site.glob("larder-*.dist-info/licenses/LICENSE")
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_services_bring_no_vllm(environment: Path) -> None:
    said = run(environment / "bin/pip", "install", "--dry-run", ".")
    [would] = re.findall("Would install (.*)", said)
    assert re.fullmatch(r"larder-server-\S+", would), said
