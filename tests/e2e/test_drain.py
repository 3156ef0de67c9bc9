"""`larder drain` on real processes: a node is emptied under load, its process ends, nobody notices."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import larder
import pytest

from demo.cluster import Cluster
from demo.traffic import metric

NODES = ("node-1", "node-2", "node-3")
SIZE = 256 * 1024
KEYS = [b"key-%03d" % i for i in range(60)]
DEADLINE_S = 60.0


def value(key: bytes) -> bytes:
    return (key * (SIZE // len(key) + 1))[:SIZE]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        cluster.start_master("--lease-ms", "2000")
        for node in NODES:
            cluster.start_node(node, dram="64MB")
        cluster.wait_ready()
        yield cluster


def drain(cluster: Cluster, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.prefix) / "bin" / "larder", "--master", cluster.master, "drain", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def status(cluster: Cluster) -> dict[str, dict[str, object]]:
    command = [Path(sys.prefix) / "bin" / "larder", "--master", cluster.master, "--format", "json", "status"]
    facts = json.loads(subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=True).stdout)
    return {node["node_id"]: node for node in facts["nodes"]}


class Worker(threading.Thread):
    """Does a thing again and again, and notes what was not right."""

    def __init__(self, work: Callable[[int], str]) -> None:
        super().__init__()
        self.work = work
        self.count = 0
        self.wrong: list[str] = []
        self.slowest_s = 0.0
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            begun = time.monotonic()
            try:
                fault = self.work(self.count)
            except larder.LarderError as error:
                fault = repr(error)
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
            if fault:
                self.wrong.append(fault)
            self.count += 1


@pytest.mark.parametrize("transports", [("shm", "engine"), ("engine",)])
def test_a_node_is_drained_under_readers_and_writers(cluster: Cluster, transports: tuple[str, ...]) -> None:
    with larder.connect(cluster.master, transports=transports) as store:
        for i, key in enumerate(KEYS):
            assert store.put(key, value(key), copies=1 + i % 2).copies == 1 + i % 2

        def read(count: int) -> str:
            key = KEYS[count % len(KEYS)]
            found = store.get(key)
            return "" if found == value(key) else f"{key!r}: {'a miss' if found is None else 'other bytes'}"

        def write(count: int) -> str:
            key = b"new-%05d" % count
            result = store.put(key, value(key), copies=2)
            time.sleep(0.02)  # all of it has to fit into two nodes
            return "" if result.copies == 2 else f"{key!r}: {result.copies} copies"

        workers = [Worker(read), Worker(write)]
        for worker in workers:
            worker.start()
        time.sleep(0.3)
        done = drain(cluster, "node-2")
        for worker in workers:
            worker.stop.set()
            worker.join()
        assert (done.returncode, done.stdout) == (0, "node-2 is drained, its process ends\n"), done.stderr
        assert cluster.processes["node-2"].wait(10) == 0
        assert [worker.wrong for worker in workers] == [[], []]
        written = [b"new-%05d" % i for i in range(workers[1].count)]
        assert store.get_many(KEYS) == [value(key) for key in KEYS]
        assert store.exists(written) == [True] * len(written)
        print(f"slowest get {workers[0].slowest_s:.2f} s, slowest put {workers[1].slowest_s:.2f} s, {done.stderr!r}")
    assert sorted(status(cluster)) == ["node-1", "node-3"]
    assert metric(cluster.metrics["master"], "larder_master_lost_copies_total") == 0
    assert metric(cluster.metrics["master"], "larder_master_drained_copies_total") > 20


def test_a_node_of_a_full_cluster_is_drained_and_what_is_read_stays(cluster: Cluster) -> None:
    with larder.connect(cluster.master) as store:
        for key in KEYS:
            store.put(key, value(key), copies=1)
        for i in range(760):  # 728 find room
            store.put(b"old-%03d" % i, value(b"old"), copies=1)
            if i % 50 == 0:
                assert store.get_many(KEYS) == [value(key) for key in KEYS]
        assert metric(cluster.metrics["master"], "larder_master_evicted_objects_total") > 50, "the pools are full"

        def read(count: int) -> str:
            key = KEYS[count % len(KEYS)]
            return "" if store.get(key) == value(key) else f"{key!r}: a miss or other bytes"

        before = metric(cluster.metrics["master"], "larder_master_objects")
        reader = Worker(read)
        reader.start()
        done = drain(cluster, "node-2")
        reader.stop.set()
        reader.join()
        assert (done.returncode, done.stdout) == (0, "node-2 is drained, its process ends\n"), done.stderr
        assert reader.wrong == []
        assert store.get_many(KEYS) == [value(key) for key in KEYS]
        kept = sum(store.exists([b"old-%03d" % i for i in range(760)]))
        assert len(KEYS) + kept > 0.6 * before, "what two nodes have room for stays"
        print(f"{kept} of the others stay of {before:.0f}, slowest get {reader.slowest_s:.2f} s")
    assert metric(cluster.metrics["master"], "larder_master_lost_objects_total") == 0


def test_what_finds_no_room_stays_and_is_told(cluster: Cluster) -> None:
    with larder.connect(cluster.master) as store:
        for node in ("node-1", "node-2"):
            assert drain(cluster, node).returncode == 0
        for key in KEYS[:4]:
            store.put(key, value(key))
        refused = drain(cluster, "node-3")
        assert refused.returncode == 1
        assert "no room on other nodes for 4 objects of node-3" in refused.stderr
        said = status(cluster)["node-3"]
        assert (said["draining"], said["drain_objects"], said["drain_without_room"]) == (True, 4, 4)
        assert store.get_many(KEYS[:4]) == [value(key) for key in KEYS[:4]]
        assert drain(cluster, "--cancel", "node-3").stdout == "node-3 stays\n"
        assert store.put("again", b"bytes").copies == 1
        unknown = drain(cluster, "node-9")
        assert (unknown.returncode, unknown.stderr) == (
            1,
            "larder: there is no storage node 'node-9': known are node-3\n",
        )
