"""The `larder` command against a real cluster: what it prints, and its exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

from demo.cluster import Cluster, free_port


def larder(
    *argv: str | Path, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [Path(sys.prefix) / "bin" / "larder", *argv],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
    )


def test_an_object_through_the_command_line(store_cluster: Cluster, tmp_path: Path, key: str) -> None:
    at = ("--master", store_cluster.master)
    data = os.urandom(3_000_000)
    (tmp_path / "in").write_bytes(data)
    put = larder(*at, "put", key, tmp_path / "in", "--copies", "2")
    assert (put.returncode, put.stdout) == (0, f"{key}: 2.9 MiB, copies: 2\n".encode())
    again = larder(*at, "--format", "json", "put", key, "-", stdin=b"other")
    assert json.loads(again.stdout) == {"key": key, "bytes": 5, "copies": 0, "existed": True}
    assert larder(*at, "get", key, tmp_path / "out").returncode == 0
    assert (tmp_path / "out").read_bytes() == data
    assert larder(*at, "get", key).stdout == data
    rows = json.loads(larder(*at, "--format", "json", "ls", key[:-1]).stdout)
    assert rows == [{"key": key, "size": 3_000_000, "copies": 2}]
    assert key in larder(*at, "ls").stdout.decode()
    assert larder(*at, "rm", key).returncode == 0
    gone = larder(*at, "rm", key)
    assert (gone.returncode, gone.stderr) == (1, f"larder: no object '{key}'\n".encode())
    missed = larder(*at, "get", key)
    assert (missed.returncode, missed.stdout, missed.stderr) == (1, b"", f"larder: no object '{key}'\n".encode())


def test_status(store_cluster: Cluster) -> None:
    at = ("--master", store_cluster.master)
    facts = json.loads(larder(*at, "--format", "json", "status").stdout)
    assert sorted(node["node_id"] for node in facts["nodes"]) == ["node-1", "node-2"]
    assert {node["state"] for node in facts["nodes"]} <= {
        "attached",
        "suspect",
    }  # a busy machine lets a node fall silent
    assert facts["nodes"][0]["segments"][0]["capacity_bytes"] == 256_000_000
    table = larder(*at, "status").stdout.decode()
    assert "node-1" in table
    assert "244.1 MiB" in table


def test_errors_are_one_line(key: str) -> None:
    refused = larder("--master", f"127.0.0.1:{free_port()}", "status")
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
    assert larder("--version").stdout.startswith(b"larder, version 0.")
    assert b"status" in larder("--help").stdout
