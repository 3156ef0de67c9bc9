"""The `larder` command against a real cluster: what it prints, and its exit status."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import time
from concurrent import futures
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
from larder import connect
from larder.cli.common import TIMEOUT_S
from larder.cli.showing import key_of
from larder.v1 import master_pb2, master_pb2_grpc

from demo.cluster import Cluster, free_port
from tests.contract.commands import TOOL, larder, run_larder

HARD_KEYS = [
    b"kv[/layer1]/b",
    b"[bold]x[/bold] :smile:",
    b"\\[red]",
    b"\xff\x00\xfe",
    b"line\nbreak",
    b"tab\there",
    "\u202eright to left".encode(),
    "schl\u00fcssel \U0001f511".encode(),
    b"0x4142",
    b"0xno-digits",
    b"-v",
    b" a  b ",
    b"a b",
    b"k" * 1024,
]


def test_an_object_through_the_command_line(store_cluster: Cluster, tmp_path: Path, key: str) -> None:
    at = ("--master", store_cluster.master)
    data = os.urandom(3_000_000)
    (tmp_path / "in").write_bytes(data)
    put = run_larder(*at, "put", key, tmp_path / "in", "--copies", "2")
    assert (put.returncode, put.stdout) == (0, f"{key}: 2.9 MiB, copies: 2\n".encode())
    again = larder(*at, "--format", "json", "put", key, "-", stdin=b"other")
    assert json.loads(again.stdout) == {"key": key, "bytes": 5, "copies": 0, "existed": True}
    assert larder(*at, "get", key, tmp_path / "out").returncode == 0
    assert (tmp_path / "out").read_bytes() == data
    assert run_larder(*at, "get", key).stdout == data
    rows = [json.loads(line) for line in larder(*at, "--format", "json", "ls", key[:-1]).stdout.splitlines()]
    assert rows == [{"key": key, "size": 3_000_000, "copies": 2}]
    assert key in larder(*at, "ls").stdout.decode()
    assert larder(*at, "rm", key).returncode == 0
    gone = larder(*at, "rm", key)
    assert (gone.returncode, gone.stderr) == (1, f"larder: no object '{key}'\n".encode())
    missed = run_larder(*at, "get", key)
    assert (missed.returncode, missed.stdout, missed.stderr) == (1, b"", f"larder: no object '{key}'\n".encode())


def test_every_key_can_be_taken_from_ls_to_get(store_cluster: Cluster) -> None:
    at = ["--master", store_cluster.master]
    values = {name: b"value of " + name[:9] for name in HARD_KEYS}
    with connect(store_cluster.master) as store:
        store.put_many(list(values), list(values.values()))
        try:
            head, *lines = larder(*at, "ls").stdout.decode().splitlines()
            as_json = (*at, "--format", "json", "ls")
            rows = [json.loads(line) for line in larder(*as_json).stdout.splitlines()]
            ascii_only = run_larder(*as_json, env={"PYTHONIOENCODING": "ascii"})
            in_ascii = [json.loads(line) for line in ascii_only.stdout.splitlines()]
            assert head.split() == ["size", "copies", "key"]
            shown = {row["key"]: key_of(row["key"]) for row in rows}
            assert set(values) <= set(shown.values())
            assert [re.sub(r"^ +[\d.]+ \w+ +\d+  ", "", line) for line in lines] == list(shown)
            assert [key_of(row["key"]) for row in in_ascii] == list(shown.values())
            assert all(row["key"].isascii() for row in in_ascii)
            for name, key in shown.items():
                if key in values:
                    assert larder(*at, "get", name).stdout == values[key]
            assert larder(*at, "rm", *[name for name, key in shown.items() if key in values]).returncode == 0
            assert store.exists(list(values)) == [False] * len(values)
        finally:
            for name in values:
                store.remove(name)


def test_keys_of_any_bytes_are_put_and_listed_by_prefix(store_cluster: Cluster, key: str) -> None:
    at = ("--master", store_cluster.master)
    raw = b"\xfe" + key.encode()
    assert (
        larder(*at, "put", b"\xfe" + key.encode(), "-", stdin=b"raw").stdout
        == f"0x{raw.hex()}: 3 B, copies: 1\n".encode()
    )
    assert larder(*at, "get", f"0x{raw.hex()}").stdout == b"raw"
    for prefix in (raw[:9], f"0x{raw[:9].hex()}".encode()):
        assert json.loads(larder(*at, "--format", "json", "ls", prefix).stdout)["key"] == f"0x{raw.hex()}"
    again = larder(*at, "put", f"0x{raw.hex()}", "-", "--pin", "hard", stdin=b"x").stdout.decode()
    assert again == f"0x{raw.hex()}: existed, and stays as it is: neither pin nor time to live changes\n"


def test_what_is_said_after_the_commands_name_counts(store_cluster: Cluster) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    facts = larder("--master", nowhere, "status", "--master", store_cluster.master, "--format", "json")
    assert json.loads(facts.stdout)["nodes"]
    assert json.loads(larder("status", "--format=json", env={"LARDER_MASTER": store_cluster.master}).stdout)["nodes"]
    assert larder("status", "--master", nowhere, "--timeout", "0.5", env={"LARDER_MASTER": "x:1"}).returncode == 1


def test_names_are_never_cut(store_cluster: Cluster) -> None:
    """At 80 columns, in a pipe as plain columns and on a terminal."""
    env = {"LARDER_MASTER": store_cluster.master, "COLUMNS": "80"}
    for said in (larder("status", env=env).stdout.decode(), on_a_terminal("status", env=env)):
        assert all(name in said for name in ("node-1", "node-2", "quarantined", "engine", "\u2026")[:4])
        assert "\u2026" not in said
    assert "\x1b" not in larder("status", env=env).stdout.decode()
    lines = larder("status", env=env).stdout.decode().splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("node "))
    assert lines[head].split()[:5] == ["node", "version", "zone", "state", "fill"]
    shown = sorted(row.split()[:3] for row in lines[head + 1 :])
    assert shown == [[node, version("larder-server"), "none"] for node in ("node-1", "node-2")]


def on_a_terminal(*argv: str, env: dict[str, str]) -> str:
    ours, theirs = pty.openpty()
    with subprocess.Popen([TOOL, *argv], stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **env}) as done:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(ours, 65536):
                said += part
        os.close(ours)
        assert done.wait(60) == 0
    return said.decode()


class Draining(master_pb2_grpc.MasterServicer):  # type: ignore[misc]
    """A master with a node whose drain never ends."""

    def Drain(self, request: Any, context: Any) -> master_pb2.DrainReply:
        return master_pb2.DrainReply()

    def Status(self, request: Any, context: Any) -> master_pb2.StatusReply:
        node = master_pb2.NodeStatus(node_id="node-1", state="attached", draining=True, drain_objects=3)
        return master_pb2.StatusReply(epoch=1, nodes=[node])


def test_who_stops_waiting_for_a_drain_is_told_that_it_goes_on() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    master_pb2_grpc.add_MasterServicer_to_server(Draining(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    argv = [TOOL, "drain", "--master", f"127.0.0.1:{port}", "node-1"]
    try:
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
            assert waiting.stderr is not None
            assert waiting.stderr.readline() == "node-1: 3 objects left\n"
            waiting.send_signal(signal.SIGINT)
            said, told = waiting.communicate(timeout=60)
    finally:
        server.stop(None).wait()
    wanted = "larder: interrupted; the drain goes on by itself; larder drain --cancel node-1 calls it off\n"
    assert (waiting.returncode, said, told) == (130, "", wanted)


def test_a_command_fails_within_its_timeout() -> None:
    began = time.monotonic()
    for argv in (["status"], ["ls"], ["get", "key"], ["rm", "key"], ["drain", "node-1"]):
        refused = larder("--master", f"127.0.0.1:{free_port()}", "--timeout", "0.3", *argv)
        assert refused.returncode == 1
        assert b"no master answers" in refused.stderr
    assert time.monotonic() - began < 5 * TIMEOUT_S  # what these calls took if --timeout were not heard
    assert TIMEOUT_S == 5
    assert larder("status", "--timeout", "0").returncode == 2
    assert larder("drain", b"\xff").returncode == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["status", "--timeout", "nan"],
        ["top", "--interval", "nan"],
        ["verify", "--wait", "nan"],
        ["bench", "--seconds", "nan"],
        ["drain", "node-1", "--timeout", "nan"],
        ["drain", "node-1", "--timeout", "-1"],
    ],
)
def test_no_number_is_no_duration(argv: list[str]) -> None:
    refused = larder("--master", f"127.0.0.1:{free_port()}", *argv)
    assert refused.returncode == 2
    assert f"Invalid value for '{argv[-2]}'".encode() in refused.stderr


def test_status(store_cluster: Cluster) -> None:
    at = ("--master", store_cluster.master)
    facts = json.loads(larder(*at, "--format", "json", "status").stdout)
    assert sorted(node["node_id"] for node in facts["nodes"]) == ["node-1", "node-2"]
    assert {node["state"] for node in facts["nodes"]} <= {
        "attached",
        "suspect",
    }  # a busy machine lets a node fall silent
    assert facts["nodes"][0]["segments"][0]["capacity_bytes"] == 256_000_000
    counted = {"objects_below_target", "copies_missing", "repairs_pending", "waiting_puts", "up_ms", "rest_left_ms"}
    assert counted <= set(facts)
    table = larder(*at, "status").stdout.decode()
    assert "node-1" in table
    assert "244.1 MiB" in table


def test_errors_are_one_line(key: str) -> None:
    refused = run_larder("--master", f"127.0.0.1:{free_port()}", "status")
    assert refused.returncode == 1
    assert refused.stderr.startswith(b"larder: no master answers")
    assert refused.stderr.count(b"\n") == 1
    bad = larder("--master", "nowhere", "ls")
    assert (bad.returncode, bad.stderr.count(b"\n")) == (1, 1)
    assert b"HOST:PORT" in bad.stderr
    assert larder("frobnicate").returncode == 2


def test_the_configuration_file_is_used(store_cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "larder.json").write_text(json.dumps({"master": store_cluster.master}))
    found = larder("--format", "json", "status", env={"LARDER_CONFIG_FILE": str(tmp_path / "larder.json")})
    assert found.returncode == 0


def test_version_and_help() -> None:
    assert run_larder("--version").stdout.startswith(b"larder, version 0.")
    assert b"status" in larder("--help").stdout
