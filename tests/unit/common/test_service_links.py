"""What Kubernetes and Docker put into the environment for a service beside this one is no setting; a typo still is."""

from pathlib import Path

import pytest
from larder.errors import InvalidArgument
from larder.options import resolve

from services.common.service_links import service_links
from services.common.settings import load
from services.master.config import MasterSettings
from services.proxy.config import ProxySettings


def kubernetes(name: str, host: str, ports: dict[str, int], protocol: str = "tcp") -> dict[str, str]:
    """As the kubelet's envvars.go makes them for one Service."""
    base = name.upper().replace("-", "_")
    joined = f"[{host}]" if ":" in host else host
    first, *_ = ports.values()
    made = {f"{base}_SERVICE_HOST": host, f"{base}_SERVICE_PORT": str(first)}
    made |= {f"{base}_SERVICE_PORT_{port.upper().replace('-', '_')}": str(number) for port, number in ports.items()}
    made[f"{base}_PORT"] = f"{protocol}://{joined}:{first}"
    for number in ports.values():
        prefix = f"{base}_PORT_{number}_{protocol.upper()}"
        made |= {prefix: f"{protocol}://{joined}:{number}", f"{prefix}_PROTO": protocol}
        made |= {f"{prefix}_PORT": str(number), f"{prefix}_ADDR": host}
    return made


DOCKER = {
    "LARDER_MASTER_NAME": "/worker/larder_master",
    "LARDER_MASTER_PORT": "tcp://172.17.0.5:50001",
    "LARDER_MASTER_PORT_50001_TCP": "tcp://172.17.0.5:50001",
    "LARDER_MASTER_PORT_50001_TCP_ADDR": "172.17.0.5",
    "LARDER_MASTER_PORT_50001_TCP_PORT": "50001",
    "LARDER_MASTER_PORT_50001_TCP_PROTO": "tcp",
    "LARDER_MASTER_ENV_PATH": "/usr/bin:/bin",
}
LINKS = [
    kubernetes("larder-master", "10.96.0.7", {"grpc": 50001, "metrics": 9101}),
    kubernetes("larder-master", "fd00:10:96::7", {"grpc": 50001}),
    kubernetes("larder-master", "10.96.0.7", {"dns-udp": 53}, "udp"),
    kubernetes("larder-master-metrics", "10.96.0.8", {"http": 9101}),  # LARDER_MASTER_METRICS_PORT is a setting's name
    DOCKER,
]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def give(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("links", LINKS)
def test_a_service_beside_it_changes_no_setting(monkeypatch: pytest.MonkeyPatch, links: dict[str, str]) -> None:
    without = load_master()
    give(monkeypatch, links)
    assert load_master() == without
    assert load_master("--port", "1").port == 1


def test_a_setting_given_besides_wins_over_the_link_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, LINKS[0] | {"LARDER_MASTER_PORT": "6000"})  # the pod's own variables replace links
    assert load_master().port == 6000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LARDER_MASTER_SERVICE_HSOT", "10.96.0.7"),
        ("LARDER_MASTER_SERVICE_HOST", "two words"),
        ("LARDER_MASTER_LEASE_MSS", "100"),
        ("LARDER_MASTER_PORT_50001_TCP_ADR", "10.96.0.7"),
        ("LARDER_MASTER_ENV_PATH", "/usr/bin"),  # Docker's, where no NAME says that it links
        ("LARDER_MASTER_COPIES_SERVICE_HOST", "10.96.0.7"),  # of another service, that nothing proves
    ],
)
def test_a_typo_beside_a_link_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    give(monkeypatch, LINKS[0] | {name: value})
    (line,) = refused(capsys)
    assert line.startswith(f"unknown environment variable {name}")


@pytest.mark.parametrize(
    "alone",
    [
        {"LARDER_MASTER_PORT": "tcp://10.96.0.7:50001"},
        {"LARDER_MASTER_SERVICE_HOST": "10.96.0.7", "LARDER_MASTER_SERVICE_PORT": "50001"},
        {"LARDER_MASTER_PORT_50001_TCP": "tcp://10.96.0.7:50002"},
        {"LARDER_MASTER_PORT_50001_UDP": "tcp://10.96.0.7:50001"},
    ],
)
def test_what_looks_like_a_part_of_a_link_and_is_alone_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], alone: dict[str, str]
) -> None:
    give(monkeypatch, alone)
    assert len(refused(capsys)) == len(alone)


def test_a_variable_of_another_programs_that_fills_a_setting_is_no_link_either(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, kubernetes("vllm-mooncake-bootstrap", "10.96.0.9", {"http": 8998}))
    give(monkeypatch, kubernetes("larder-proxy", "10.96.0.9", {"http": 80}))
    found = load(ProxySettings, prog="proxy", argv=["--decode", "d:1"])
    assert (found.mooncake_bootstrap_port, found.port) == (8998, 8000)


@pytest.mark.parametrize("name", ["larder", "larder-master", "larder-config"])
def test_no_service_of_any_such_name_gives_the_client_a_master(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable in ("LARDER_MASTER", "LARDER_CONFIG_FILE", "MOONCAKE_CONFIG_PATH"):
        monkeypatch.delenv(variable, raising=False)
    give(monkeypatch, kubernetes(name, "10.96.0.7", {"master": 50001, "file": 1}))
    with pytest.raises(InvalidArgument, match="no master given"):
        resolve(None)
    monkeypatch.setenv("LARDER_MASTER", "larder-master:50001")
    assert resolve(None).masters == ("larder-master:50001",)


def test_every_member_of_a_group_and_nothing_beside_it_counts_as_a_link() -> None:
    assert service_links(LINKS[0] | {"PATH": "/bin", "LARDER_MASTER": "m:1"}) == LINKS[0].keys()
    assert service_links(DOCKER) == DOCKER.keys()
    assert service_links({}) == frozenset()


def load_master(*argv: str) -> MasterSettings:
    return load(MasterSettings, prog="master", argv=argv)


def refused(capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as stopped:
        load_master()
    assert stopped.value.code == 2
    return [line.removeprefix("master: ") for line in capsys.readouterr().err.splitlines()]
