"""`larder ls`, `stat`, `put`, `get` and `rm` against a real cluster: what they show, refuse, and leave behind."""

import json
import os
import pty
import stat
import subprocess
from pathlib import Path

import pytest
from larder import connect

from demo.cluster import Cluster
from tests.contract.commands import TOOL, larder, run_larder


def test_ls_goes_through_pages_and_ends_where_it_is_told(store_cluster: Cluster, key: str) -> None:
    at = ("--master", store_cluster.master)
    names = sorted(f"{key}-{number:04}" for number in range(1_203))  # more than a page
    with connect(store_cluster.master) as store:
        store.put_many(names, [b"x"] * len(names))
        head, *lines = larder(*at, "ls", key).stdout.decode().splitlines()
        assert head.split() == ["size", "copies", "key"]
        assert [line.split() for line in lines] == [["1", "B", "1", name] for name in names]
        few = larder(*at, "--format", "json", "ls", key, "--limit", "1001").stdout.splitlines()
        assert [json.loads(line)["key"] for line in few] == names[:1001]
        assert larder(*at, "ls", key + "-none").stdout.decode().split() == ["size", "copies", "key"]
        gone = larder(*at, "--format", "json", "rm", "--prefix", f"{key}-0", "--yes", f"{key}-1000")
        assert json.loads(gone.stdout) == {"removed": 1_001, "missing": []}
        assert larder(*at, "rm", "--prefix", key, stdin=b"y\n").stdout.endswith(b"202 objects removed\n")
        assert store.exists(names) == [False] * len(names)


def test_rm_asks_before_it_removes_what_a_prefix_names(store_cluster: Cluster, key: str) -> None:
    at = ("--master", store_cluster.master)
    with connect(store_cluster.master) as store:
        store.put_many([key, key + "-2"], [b"stays", b"goes"])
        assert larder(*at, "rm", key + "-2", key + "-2").returncode == 0
        for answer in (b"n\n", b""):
            asked = larder(*at, "rm", "--prefix", key, stdin=answer)
            assert asked.returncode == 1
            assert f"Remove the 1 object of 5 B whose keys begin with {key}?" in asked.stderr.decode()
            assert asked.stderr.endswith(b"larder: nothing was removed; --yes removes without asking\n")
        assert store.exists([key]) == [True]
    assert larder(*at, "rm").returncode == 2


def test_stat_tells_places_checksums_pin_and_time_to_live(store_cluster: Cluster, key: str) -> None:
    at = ("--master", store_cluster.master)
    with connect(store_cluster.master) as store:
        store.put(key, os.urandom(1_500_000), copies=2, pin="soft", ttl_s=500)
        asked = larder(*at, "--format", "json", "stat", key, key + "-none")
        (facts,) = [json.loads(line) for line in asked.stdout.splitlines()]
        assert (asked.returncode, asked.stderr) == (1, f"larder: no object '{key}-none'\n".encode())
        assert (facts["key"], facts["size"], facts["copies"], facts["copies_wanted"]) == (key, 1_500_000, 2, 2)
        assert (facts["pin"], facts["lease_ms"]) == ("soft", 0)
        assert 400_000 < facts["ttl_ms"] <= 500_000
        assert [part["length"] for part in facts["slices"]] == [1 << 20, 1_500_000 - (1 << 20)]
        for part in facts["slices"]:
            assert sorted(copy["node"] for copy in part["copies"]) == ["node-1", "node-2"]
            assert all(copy["answers"] for copy in part["copies"])
            assert len(part["checksum"]) == 16
        said = larder(*at, "stat", key).stdout.decode()
        assert "1.4 MiB (1,500,000 bytes), 2 copies of 2 wanted, pin soft" in said
        assert facts["slices"][1]["checksum"] in said
        store.get(key)
        with store.view(key):
            (facts,) = [json.loads(line) for line in larder(*at, "--format", "json", "stat", key).stdout.splitlines()]
            assert facts["lease_ms"] > 0  # somebody reads it


def test_a_file_is_whole_or_not_there(store_cluster: Cluster, tmp_path: Path, key: str) -> None:
    at = ("--master", store_cluster.master)
    data = os.urandom(2_000_000)
    (tmp_path / "in").write_bytes(data)
    assert larder(*at, "put", key, tmp_path / "in").returncode == 0
    out = tmp_path / "out"
    out.write_bytes(b"what was there before")
    out.chmod(0o640)
    (tmp_path / "link").symlink_to(out)
    missed = larder(*at, "get", key + "-none", out)
    assert (missed.returncode, out.read_bytes()) == (1, b"what was there before")
    assert larder(*at, "get", key, tmp_path / "link").returncode == 0
    assert out.read_bytes() == data
    assert stat.S_IMODE(out.stat().st_mode) == 0o640
    assert (tmp_path / "link").is_symlink()
    nowhere = larder(*at, "get", key, tmp_path / "none" / "out")
    assert nowhere.returncode == 2
    assert f"there is no directory {tmp_path / 'none'}".encode() in nowhere.stderr
    for directory in (tmp_path, ""):
        refused = larder(*at, "get", key, directory)
        assert (refused.returncode, b"directory" in refused.stderr) == (2, True)
    assert larder(*at, "get", key, "/dev/null").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "link", "out"]


def test_bytes_are_not_for_a_terminal(store_cluster: Cluster, key: str) -> None:
    ours, theirs = pty.openpty()
    argv = [TOOL, "--master", store_cluster.master, "get", key]
    done = subprocess.run(argv, stdout=theirs, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert b"not for a terminal: name a FILE, or pipe them" in done.stderr


def test_put_takes_pipes_and_refuses_what_is_empty(store_cluster: Cluster, tmp_path: Path, key: str) -> None:
    at = ("--master", store_cluster.master)
    assert run_larder(*at, "put", key, "/dev/stdin", stdin=b"through a pipe").returncode == 0
    for argv in (["get", key], ["get", key, "-"]):
        assert run_larder(*at, *argv).stdout == b"through a pipe"
    (tmp_path / "empty").touch()
    refused = larder(*at, "put", key + "-none", tmp_path / "empty")
    assert (refused.returncode, refused.stderr.count(b"\n")) == (1, 1)


def test_a_reader_who_has_enough_ends_it_quietly(store_cluster: Cluster, key: str) -> None:
    at = store_cluster.master
    with connect(at) as store:
        store.put_many([f"{key}-{number:04}" + "x" * 200 for number in range(3_000)], [b"x"] * 3_000)
    script = f"'{TOOL}' --master {at} ls {key} | head -2; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=60, check=False)
    assert done.stderr == b""
    assert done.stdout.splitlines()[-1] == b"141"
    larder("--master", at, "rm", "--prefix", key, "--yes")


@pytest.mark.parametrize("argv", [["ls", "--limit", "0"], ["stat"], ["get"], ["put", "key", "/no/such/file"]])
def test_wrong_command_lines_are_told_apart(argv: list[str]) -> None:
    refused = larder(*argv)
    assert refused.returncode == 2
    assert refused.stderr.startswith(b"Usage: larder")
