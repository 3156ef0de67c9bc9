"""A storage node dies while clients read and write: nobody notices but the clock, and lost copies are made again."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import larder
import pytest
from larder.v1 import master_pb2, master_pb2_grpc
from larder.wire import pack_keys, unpack_keys

from demo.cluster import Cluster
from demo.traffic import metric

NODES = ("node-1", "node-2", "node-3")
KEYS = [b"key-%03d" % i for i in range(60)]
SIZE = 256 * 1024
REPAIRED_S = 10.0
LOST_S = 30.0  # so long a node may be away until its copies are given up
SLOWEST_S = {"kill": 0.25, "pause": 0.5}  # a frozen node's answer would be waited for 1 s, were it not for the hedge


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


def holder(cluster: Cluster, key: bytes) -> str:
    """A node that has a copy of the key: objects of one batch may lie on the same few nodes."""
    with grpc.insecure_channel(cluster.master) as channel:
        request = master_pb2.LookupRequest(keys=pack_keys([key]))
        found = master_pb2_grpc.MasterStub(channel).Lookup(request, timeout=5).places
        return str(found.segments[found.copy_segments[0]].node_id)


class Reader(threading.Thread):
    """Gets every key again and again, and notes what was not right."""

    def __init__(self, store: larder.Store) -> None:
        super().__init__(daemon=True)
        self.store = store
        self.wrong: list[tuple[bytes, object]] = []
        self.slowest_s = 0.0
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            for key in KEYS:
                begun = time.monotonic()
                try:
                    got: object = self.store.get(key)
                except larder.LarderError as error:
                    got = error
                self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
                if got != value(key):
                    self.wrong.append((key, "other bytes" if isinstance(got, bytes) else got))


@pytest.mark.parametrize("transports", [("shm", "engine"), ("engine",)])
@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_a_lost_nodes_copies_are_made_again_and_no_reader_notices(
    cluster: Cluster, transports: tuple[str, ...], fault: str
) -> None:
    with larder.connect(cluster.master, transports=transports) as store:
        results = store.put_many(KEYS, [value(key) for key in KEYS], copies=2)
        assert [result for result in results if result != larder.PutResult(2, False)] == []
        reader = Reader(store)
        reader.start()
        time.sleep(0.5)
        victim = cluster.processes[holder(cluster, KEYS[0])]
        getattr(victim, fault)()
        lost_at = time.monotonic()
        time.sleep(0.3)
        while min(copies(cluster), default=0) < 2 or not repaired_copies(cluster):
            assert time.monotonic() - lost_at < REPAIRED_S, copies(cluster)
            time.sleep(0.1)
        repaired_s = time.monotonic() - lost_at
        reader.stop.set()
        reader.join()
        assert reader.wrong == []
        assert reader.slowest_s < SLOWEST_S[fault]
        assert len(copies(cluster)) == len(KEYS)
        assert metric(cluster.metrics["master"], "larder_master_repairs_pending") == 0
        print(f"{fault}, {transports}: repaired after {repaired_s:.1f} s, slowest get {reader.slowest_s * 1000:.0f} ms")
        if fault == "pause":
            victim.resume()
            await_trim(cluster)


def repaired_copies(cluster: Cluster) -> float:
    return metric(cluster.metrics["master"], "larder_master_repaired_copies_total")


def await_trim(cluster: Cluster) -> None:
    """The node is back, and what was made elsewhere meanwhile is surplus."""
    until = time.monotonic() + REPAIRED_S
    while set(copies(cluster)) != {2}:
        assert time.monotonic() < until, copies(cluster)
        time.sleep(0.1)


def keys_by_copies(cluster: Cluster) -> dict[int, set[bytes]]:
    with grpc.insecure_channel(cluster.master) as channel:
        listed = master_pb2_grpc.MasterStub(channel).List(master_pb2.ListRequest(limit=1000), timeout=5)
        found: dict[int, set[bytes]] = {}
        for key, count in zip(unpack_keys(listed.keys), listed.copies, strict=True):
            found.setdefault(count, set()).add(key)
        return found


def test_in_a_full_cluster_what_is_wanted_most_is_back_at_two_copies(cluster: Cluster) -> None:
    """364 objects find room; two nodes have room for 242 of them."""
    with larder.connect(cluster.master) as store:
        for i in range(400):
            assert store.put(b"old-%03d" % i, value(b"old-%03d" % i), copies=2).copies == 2
        store.put_many(KEYS, [value(key) for key in KEYS], copies=2)
        assert metric(cluster.metrics["master"], "larder_master_evicted_objects_total") > 50, "the pools are full"
        assert store.get_many(KEYS) == [value(key) for key in KEYS]
        time.sleep(10)  # what a get asked for is not evicted so long
        reader = Reader(store)
        reader.start()
        cluster.processes["node-2"].kill()
        lost_at = time.monotonic()
        time.sleep(20)
        before = keys_by_copies(cluster)
        known = sum(map(len, before.values()))
        assert known == metric(cluster.metrics["master"], "larder_master_objects") > 330, "the node may come back"
        while set(keys := keys_by_copies(cluster)) != {2}:
            assert time.monotonic() - lost_at < LOST_S + REPAIRED_S, {count: len(some) for count, some in keys.items()}
            time.sleep(0.2)
        repaired_s = time.monotonic() - lost_at
        reader.stop.set()
        reader.join()
        assert reader.wrong == []
        assert keys[2].issuperset(KEYS)
        assert len(keys[2]) > 0.6 * known, "what two nodes have room for stays"
        print(f"{len(keys[2])} of {known} objects back at two copies after {repaired_s:.1f} s")


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
