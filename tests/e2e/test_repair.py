"""A storage node dies while clients read and write: nobody notices but the clock, and lost copies are made again."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import larder
import pytest
from larder.v1 import master_pb2, master_pb2_grpc

from demo.cluster import Cluster
from demo.traffic import metric

NODES = ("node-1", "node-2", "node-3")
KEYS = [b"key-%03d" % i for i in range(60)]
SIZE = 256 * 1024
REPAIRED_S = 10.0


def value(key: bytes) -> bytes:
    return (key * (SIZE // len(key) + 1))[:SIZE]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        cluster.start_master()
        for node in NODES:
            cluster.start_node(node, dram="64MB")
        cluster.wait_ready()
        yield cluster


def copies(cluster: Cluster) -> list[int]:
    with grpc.insecure_channel(cluster.master) as channel:
        return list(master_pb2_grpc.MasterStub(channel).List(master_pb2.ListRequest(limit=1000), timeout=5).copies)


@pytest.mark.parametrize("transports", [("shm", "engine"), ("engine",)])
def test_a_killed_nodes_copies_are_made_again_and_no_reader_notices(
    cluster: Cluster, transports: tuple[str, ...]
) -> None:
    with larder.connect(cluster.master, transports=transports) as store:
        results = store.put_many(KEYS, [value(key) for key in KEYS], copies=2)
        assert [result for result in results if result != larder.PutResult(2, False)] == []
        wrong: list[tuple[bytes, object]] = []
        slowest_s = [0.0]
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                for key in KEYS:
                    begun = time.monotonic()
                    try:
                        got: object = store.get(key)
                    except larder.LarderError as error:
                        got = error
                    slowest_s[0] = max(slowest_s[0], time.monotonic() - begun)
                    if got != value(key):
                        wrong.append((key, got if not isinstance(got, bytes) else "other bytes"))

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.5)
        cluster.processes["node-1"].kill()
        killed = time.monotonic()
        while min(copies(cluster)) < 2 or len(copies(cluster)) < len(KEYS):
            assert time.monotonic() - killed < REPAIRED_S, copies(cluster)
            time.sleep(0.1)
        repaired_s = time.monotonic() - killed
        stop.set()
        reader.join()
        assert wrong == []
        assert metric(cluster.metrics["master"], "larder_master_repaired_copies_total") > 0
        assert metric(cluster.metrics["master"], "larder_master_repairs_pending") == 0
        print(f"{transports}: repaired after {repaired_s:.1f} s, slowest get {slowest_s[0] * 1000:.0f} ms")


@pytest.mark.parametrize("copies_wanted", [1, 2])
@pytest.mark.parametrize("transports", [("shm", "engine"), ("engine",)])
def test_writers_do_not_notice_that_a_node_is_killed(
    cluster: Cluster, transports: tuple[str, ...], copies_wanted: int
) -> None:
    with larder.connect(cluster.master, transports=transports) as store:
        begun = time.monotonic()
        killed = False
        slowest_s = 0.0
        number = 0
        while (now := time.monotonic()) < begun + 4.0:
            if not killed and now > begun + 1.0:
                cluster.processes["node-2"].kill()
                killed = True
            key = b"w-%d" % number
            assert store.put(key, value(key), copies=copies_wanted).copies >= 1
            slowest_s = max(slowest_s, time.monotonic() - now)
            number += 1
    assert slowest_s < 2.0
    print(f"{transports}, copies={copies_wanted}: {number} puts, slowest {slowest_s * 1000:.0f} ms")
