"""`larder bench` against a real cluster: what it says, that nothing of it stays, and that it takes nobody's room."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import pytest
from larder import connect
from larder.v1 import master_pb2, master_pb2_grpc

from demo.cluster import Cluster
from tests.contract.commands import TOOL, larder

BENCH = ("bench", "--seconds", "0.5", "--bytes", "8MiB", "--size", "64KiB", "--size", "1MiB")


def left(cluster: Cluster) -> list[object]:
    done = larder("--master", cluster.master, "--format", "json", "ls", "larder-bench/")
    assert (done.returncode, done.stderr) == (0, b"")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("transport", ["shm", "engine"])
def test_it_times_every_call_and_says_which_way_bytes_went(store_cluster: Cluster, transport: str) -> None:
    done = larder("--master", store_cluster.master, "--format", "json", *BENCH, "--transport", transport)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [(row["size_bytes"], row["operation"]) for row in said["rows"]] == [
        (size, operation) for size in (1 << 16, 1 << 20) for operation in ("put", "get", "match")
    ]
    for row in said["rows"]:
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert (row["operation"] == "match") == (row["memory_gbps"] is None)
    assert said["moved_bytes"][transport] > 0
    assert sum(said["moved_bytes"].values()) == said["moved_bytes"][transport]
    assert not left(store_cluster)


def test_what_it_put_is_gone_when_it_is_interrupted(store_cluster: Cluster) -> None:
    argv = [TOOL, "--master", store_cluster.master, "bench", "--seconds", "60", "--bytes", "32MiB"]
    listing = master_pb2.ListRequest(prefix=b"larder-bench/")
    with grpc.insecure_channel(store_cluster.master) as channel:
        stub = master_pb2_grpc.MasterStub(channel)
        for number in (signal.SIGINT, signal.SIGTERM):
            interrupt(argv, number, lambda: bool(stub.List(listing, timeout=10).sizes))
            assert not left(store_cluster)


def interrupt(argv: Sequence[str | Path], number: int, has_put: Callable[[], bool]) -> None:
    process = subprocess.Popen([*argv, "--size", "1MiB"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 60
        while not has_put():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=30)
        assert (process.returncode, said) == (130, b"larder: interrupted\n")
    finally:
        process.kill()


def test_sizes_and_bytes_that_contradict_each_other_are_told(store_cluster: Cluster) -> None:
    refused = larder("--master", store_cluster.master, "bench", "--bytes", "1MiB", "--size", "16MiB")
    said = b"larder: no object of 16777216 bytes fits into 1048576: give more with --bytes\n"
    assert (refused.returncode, refused.stderr) == (1, said)


def test_sizes_that_do_not_fit_are_named(store_cluster: Cluster) -> None:
    sizes = ("--bytes", "1MiB", "--size", "64KiB", "--size", "16MiB")
    done = larder("--master", store_cluster.master, "--format", "json", "bench", "--seconds", "0.2", *sizes)
    assert done.returncode == 0
    assert json.loads(done.stdout)["left_out_bytes"] == [16 << 20]
    said = b"larder: no room for objects of 16 MiB within --bytes and a quarter of what is free: left out\n"
    assert done.stderr == said


def test_it_does_not_fill_a_cluster(fragile: Cluster) -> None:
    with connect(fragile.master) as store:
        for number in range(18):
            store.put(f"mine-{number}", bytes(6 << 20))
        done = larder("--master", fragile.master, "bench", "--size", "16MiB", "--seconds", "0.1")
        assert done.returncode == 1
        assert b"bytes are free in the cluster" in done.stderr
        assert b"start another storage node" in done.stderr
        assert store.exists([f"mine-{number}" for number in range(18)]) == [True] * 18
