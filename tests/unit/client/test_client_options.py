"""What connect() can be told: arguments, files, and what is refused with the reason."""

import json
from pathlib import Path
from typing import Any

import larder
import pytest
from larder.engine_ports import Ports
from larder.errors import InvalidArgument
from larder.options import Options, resolve

NOTHING: dict[str, Any] = {"timeout_s": None, "verify": None, "transports": None, "zone": None, "engine_ports": None}


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LARDER_MASTER", raising=False)
    monkeypatch.delenv("LARDER_CONFIG_FILE", raising=False)
    monkeypatch.delenv("MOONCAKE_CONFIG_PATH", raising=False)


def write(path: Path, text: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(text)
    monkeypatch.setenv(variable, str(path))


def test_defaults() -> None:
    assert resolve("host:1", **NOTHING) == Options(("host:1",), 5.0, True, ("shm", "engine"), "", None)
    assert resolve("a:1, b:2", **NOTHING).masters == ("a:1", "b:2")


def test_connect_is_cheap_and_sends_nothing() -> None:
    store = larder.connect("192.0.2.1:1", timeout_s=1)  # nobody answers there
    assert store.stats() == {}
    store.close()


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_the_file_and_who_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    values = {"master": "file:1", "timeout_s": 2, "verify": False, "transports": ["shm"], "zone": "rack-1"}
    values["engine_ports"] = "18000-18009"
    text = (
        json.dumps(values) if suffix == "json" else "".join(f"{name}: {json.dumps(values[name])}\n" for name in values)
    )
    write(tmp_path / f"larder.{suffix}", text, "LARDER_CONFIG_FILE", monkeypatch)
    monkeypatch.setenv("MOONCAKE_CONFIG_PATH", "/nowhere")  # not even read
    assert resolve(None, **NOTHING) == Options(("file:1",), 2.0, False, ("shm",), "rack-1", Ports(18000, 18009))
    chosen = resolve("arg:1", timeout_s=7, verify=True, zone="")
    assert chosen == Options(("arg:1",), 7.0, True, ("shm",), "", Ports(18000, 18009))


def test_the_environment_names_the_master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARDER_MASTER", "env:1,env:2")
    assert resolve(None, **NOTHING).masters == ("env:1", "env:2")
    assert resolve("arg:1", **NOTHING).masters == ("arg:1",)
    write(tmp_path / "larder.json", '{"master": "file:1", "timeout_s": 2}', "LARDER_CONFIG_FILE", monkeypatch)
    assert resolve(None, **NOTHING) == Options(("env:1", "env:2"), 2.0, True, ("shm", "engine"), "", None)
    monkeypatch.setenv("LARDER_MASTER", "")
    assert resolve(None, **NOTHING).masters == ("file:1",)


@pytest.mark.parametrize(
    ("name", "value"),
    [("transports", [["shm"]]), ("transports", [1]), ("zone", "r\ud800"), ("zone", "a\nb"), ("master", "h\ud800:1")]
    + [("engine_ports", bad) for bad in ("18000", "18009-18000", "0-9", "18000-18000", "1-65536", 18000, "1-2 ")],
)
def test_what_is_refused_names_the_argument(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"{name} is") as caught:
        resolve(**{"master": "host:1", **NOTHING, name: value})
    str(caught.value).encode()


def test_mooncakes_file_gives_the_master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "master_server_address": "host:1",
        "metadata_server": "P2PHANDSHAKE",
        "protocol": "tcp",
        "device_name": "",
    }
    write(tmp_path / "mooncake.json", json.dumps(values), "MOONCAKE_CONFIG_PATH", monkeypatch)
    assert resolve(None, **NOTHING).masters == ("host:1",)


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("LARDER_CONFIG_FILE", '{"mater": "host:1"}', "unknown keys mater"),
        ("LARDER_CONFIG_FILE", '["host:1"]', "a mapping"),
        ("LARDER_CONFIG_FILE", '{"master"', "line 1"),
        ("MOONCAKE_CONFIG_PATH", '{"master_server_adress": "host:1"}', "unknown keys master_server_adress"),
        ("MOONCAKE_CONFIG_PATH", '{"protocol": "tcp"}', "master_server_address is missing"),
    ],
)
def test_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, text: str, said: str) -> None:
    write(tmp_path / "config.json", text, variable, monkeypatch)
    with pytest.raises(InvalidArgument, match=said):
        resolve(None, **NOTHING)


def test_a_missing_file_and_bad_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARDER_CONFIG_FILE", str(tmp_path / "missing.json"))
    with pytest.raises(InvalidArgument, match=r"LARDER_CONFIG_FILE names .*missing\.json"):
        resolve(None, **NOTHING)
    write(tmp_path / "bad.yaml", "master: [", "LARDER_CONFIG_FILE", monkeypatch)
    with pytest.raises(InvalidArgument, match="not YAML"):
        resolve(None, **NOTHING)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"master": None}, "no master given"),
        ({"master": ""}, "no master given"),
        ({"master": "host"}, "HOST:PORT"),
        ({"master": "host:0"}, "HOST:PORT"),
        ({"master": "host:70000"}, "HOST:PORT"),
        ({"master": "a:1,,b:2"}, "HOST:PORT"),
        ({"master": 7}, "HOST:PORT"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"timeout_s": -1.0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"timeout_s": "5"}, "timeout_s"),
        ({"timeout_s": True}, "timeout_s"),
        ({"verify": "yes"}, "verify"),
        ({"transports": ["rdma"]}, "shm, engine"),
        ({"transports": "shm"}, "shm, engine"),
        ({"transports": []}, "shm, engine"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        resolve(**{"master": "host:1", **NOTHING, **arguments})


def test_the_environment_gives_the_ports_unless_an_argument_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARDER_ENGINE_PORTS", "18000-18009")
    assert resolve("host:1", **NOTHING).engine_ports == Ports(18000, 18009)
    assert resolve("host:1", engine_ports="18000-18003").engine_ports == Ports(18000, 18003)
