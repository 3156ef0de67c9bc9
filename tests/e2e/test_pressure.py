"""Pools are filled three times over by eight threads: every put finds room, and no pool ever holds more than it has."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import larder
import pytest
from larder.v1 import master_pb2, master_pb2_grpc

from demo.cluster import Cluster
from demo.traffic import metric

NODES = ("node-1", "node-2")
DRAM_BYTES = 64 << 20
CAPACITY_BYTES = len(NODES) * DRAM_BYTES
SIZE = 256 << 10
THREADS = 8
TIMES = 3
TAIL = 10  # p99 over p50 at most; measured are 1.8 to 3.0, and 3.9 with two busy loops beside
SLOWEST_S = 2.0  # measured is 0.4


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        cluster.start_master()
        for node in NODES:
            cluster.start_node(node, dram=str(DRAM_BYTES))
        cluster.wait_ready()
        yield cluster


class Watcher(threading.Thread):
    """Samples what the master says of every pool."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster = cluster
        self.stop = threading.Event()
        self.most_used_bytes = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        with grpc.insecure_channel(self.cluster.master) as channel:
            master = master_pb2_grpc.MasterStub(channel)
            while not self.stop.wait(0.01):
                for node in master.Status(master_pb2.StatusRequest(), timeout=5).nodes:
                    self._look(node)

    def _look(self, node: master_pb2.NodeStatus) -> None:
        (pool,) = node.segments
        used = pool.live_bytes + pool.reserved_bytes + pool.quarantined_bytes
        self.most_used_bytes = max(self.most_used_bytes, used)
        if used > DRAM_BYTES or used + pool.free_bytes != DRAM_BYTES:
            self.wrong.append(f"{node.node_id}: {used} bytes used, {pool.free_bytes} free, of {DRAM_BYTES}")


@pytest.mark.parametrize(("transports", "copies"), [(("shm", "engine"), 1), (("engine",), 1), (("shm", "engine"), 2)])
def test_puts_find_room_however_full_the_pools_are(cluster: Cluster, transports: tuple[str, ...], copies: int) -> None:
    numbers = itertools.count()
    total = TIMES * CAPACITY_BYTES // (SIZE * copies)
    watcher = Watcher(cluster)
    with larder.connect(cluster.master, transports=transports) as store:

        def work() -> list[tuple[float, object]]:
            done: list[tuple[float, object]] = []
            while (number := next(numbers)) < total:
                data = number.to_bytes(8, "little") * (SIZE // 8)
                begun = time.monotonic()
                try:
                    answer: object = store.put(f"key-{number}", data, copies=copies)
                except larder.LarderError as error:
                    answer = error
                done.append((time.monotonic() - begun, answer))
            return done

        watcher.start()
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                done = [each for part in pool.map(lambda _: work(), range(THREADS)) for each in part]
        finally:
            watcher.stop.set()
            watcher.join()
        newest = f"key-{total - 1}"
        assert store.get(newest) == (total - 1).to_bytes(8, "little") * (SIZE // 8)
    assert [answer for _, answer in done if answer != larder.PutResult(copies, False)] == []
    assert len(done) == total
    assert watcher.wrong == []
    assert watcher.most_used_bytes > DRAM_BYTES // 2
    assert metric(cluster.metrics["master"], "larder_master_evicted_objects_total") > total * (TIMES - 1) / TIMES / 2
    taken_ms = sorted(1000 * seconds for seconds, _ in done)
    p50_ms, p99_ms = taken_ms[total // 2], taken_ms[total * 99 // 100]
    print(
        f"{transports}, {copies} copies: {total} puts, most used {watcher.most_used_bytes / DRAM_BYTES:.0%} of a pool,"
        f" p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms ({p99_ms / p50_ms:.1f} x), slowest {taken_ms[-1]:.0f} ms"
    )
    assert p99_ms < TAIL * p50_ms
    assert taken_ms[-1] < 1000 * SLOWEST_S
