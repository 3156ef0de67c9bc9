"""Pins and lives on real processes: what is kept under pressure, what is refused, what a new master still knows."""

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import larder
import pytest
from larder.v1 import master_pb2, master_pb2_grpc

from demo.cluster import Cluster

MB = 1_000_000


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        cluster.start_master("--pin-share", "0.3", "--lease-ms", "1000")
        cluster.start_node("node-1", dram="64MB")
        cluster.wait_ready()
        yield cluster


def pinned_bytes(cluster: Cluster) -> int:
    with grpc.insecure_channel(cluster.master) as channel:
        reply = master_pb2_grpc.MasterStub(channel).Status(master_pb2.StatusRequest(), timeout=5)
        return sum(segment.pinned_bytes for node in reply.nodes for segment in node.segments)


def test_pins_and_lives_outlast_pressure_and_the_master(cluster: Cluster) -> None:
    keys = [b"pinned-%02d" % i for i in range(25)]
    with larder.connect(cluster.master, timeout_s=20) as store:
        results = store.put_many(keys, [bytes([i]) * MB for i in range(25)], pin="hard")
        kept = [key for key, result in zip(keys, results, strict=True) if isinstance(result, larder.PutResult)]
        refused = [result for result in results if isinstance(result, larder.PinRefused)]
        assert (len(kept), len(refused)) == (19, 6), "0.3 of 64 MB"
        assert "--pin-share" in str(refused[0])
        assert store.put("soft", b"s" * MB, pin="soft").copies == 1
        for i in range(120):  # twice what there is room for
            assert store.put(b"plain-%03d" % i, bytes(MB)).copies == 1
        assert store.exists(kept) == [True] * len(kept)
        assert store.exists(["soft", "plain-000", "plain-119"]) == [True, False, True]
        assert store.put("short", b"bytes", ttl_s=12).copies == 1
        short_until = time.monotonic() + 12
        before = pinned_bytes(cluster)

        cluster.processes["master"].kill()
        port = int(cluster.master.rpartition(":")[2])
        cluster.start_master("--pin-share", "0.3", "--lease-ms", "1000", port=port)
        while not store.exists(kept[:1])[0]:
            time.sleep(0.05)
        assert pinned_bytes(cluster) == before
        assert store.get_many(kept) == [bytes([i]) * MB for i in range(len(kept))]
        left_s = short_until - time.monotonic()
        assert left_s > 0, "the machine was too slow to tell"
        assert store.get("short") == b"bytes"
        time.sleep(left_s + 0.5)
        assert store.get("short") is None
