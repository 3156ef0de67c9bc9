"""A client is stopped while it copies into a pool, and woken when its write has expired and all other space was reused.

What it still writes then lands in its own place: no key reads wrong bytes, also by a client that verifies no checksums.
With the quarantine or the node's look for writers switched off, the same test sees wrong bytes.
"""

import os
import sys
import time
from pathlib import Path

import grpc
import larder
import pytest
from larder.pool_file import HEADER_BYTES
from larder.v1 import master_pb2, master_pb2_grpc
from larder.writer_locks import has_writer

from demo.cluster import Cluster
from demo.processes import Process
from tests.chaos import altered, values

POOL_BYTES = 96 << 20
BIG_BYTES = 64 << 20  # four slices
SMALL_BYTES = 256 << 10
SEED = 5
TRIES = 10
ROOT = Path(__file__).resolve().parents[2]
# Puts and removes until a put takes long, which means that it was stopped.
WRITER = """
import itertools, sys, time, larder, larder.puts
larder.puts.ATTEMPTS = 1  # a second one would write in places of its own
store = larder.connect(sys.argv[1], transports=["shm"], verify=False, timeout_s=60)
datas = itertools.cycle([b"late" * (int(sys.argv[2]) // 4), b"LATE" * (int(sys.argv[2]) // 4)])
store.exists(["big"])
print("ready", flush=True)
while True:
    begun = time.monotonic()
    try:
        store.put("big", next(datas))
    except larder.LarderError as error:
        print("put failed:", error, flush=True)
    if time.monotonic() - begun > 1:
        break
    store.remove("big")
    time.sleep(0.01)
print("put was stopped", flush=True)
"""


class Pool:
    """The pool's file, as anybody on this host can see it."""

    def __init__(self, cluster: Cluster) -> None:
        (path,) = cluster.pool_dir.iterdir()
        self.fd = os.open(path, os.O_RDWR)

    def has_writer(self) -> bool:
        return has_writer(self.fd, HEADER_BYTES, POOL_BYTES)

    def bytes(self) -> bytes:
        return os.pread(self.fd, POOL_BYTES, HEADER_BYTES)


def start(tmp_path: Path, *changes: str) -> Cluster:
    through = [sys.executable, str(ROOT / "tests/chaos/altered.py"), ",".join(["short_writes", *changes])]
    cluster = Cluster(tmp_path, within=lambda name: through if name in ("master", "node-1") else ())
    cluster.start_master("--lease-ms", "1000")
    cluster.start_node("node-1", dram=str(POOL_BYTES))
    cluster.wait_ready()
    return cluster


def stop_in_a_copy(cluster: Cluster, pool: Pool, number: int) -> Process:
    """A client that is stopped and holds a lock: it was writing."""
    client = cluster.start_program(
        f"client-{number}", "python", "-c", WRITER, cluster.master, str(BIG_BYTES), ready="ready"
    )
    cluster.wait_ready()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if pool.has_writer():
            time.sleep(0.003)  # the lock comes first: now it copies
            client.pause()
            time.sleep(0.1)  # its threads come to a halt one by one
            if pool.has_writer():
                return client
            client.resume()
    raise AssertionError("the client never writes")


def resting_bytes(cluster: Cluster) -> int:
    with grpc.insecure_channel(cluster.master) as channel:
        status = master_pb2_grpc.MasterStub(channel).Status(master_pb2.StatusRequest(), timeout=5)
    return sum(segment.quarantined_bytes for node in status.nodes for segment in node.segments)


def late_and_wrong(cluster: Cluster, number: int) -> tuple[int, int]:
    """One client is stopped and woken: how many bytes it wrote after that, and how many other keys read wrong ones."""
    pool = Pool(cluster)
    with larder.connect(cluster.master, transports=["shm"], verify=False) as store:
        client = stop_in_a_copy(cluster, pool, number)
        time.sleep((altered.WRITE_TTL_MS + altered.LATE_WRITE_MS) / 1000 + 0.5)
        keys = [b"key-%d-%d" % (number, index) for index in range(2 * POOL_BYTES // SMALL_BYTES)]
        for put, key in enumerate(keys):
            assert not store.put(key, values.value(key, put, seed=SEED, size=SMALL_BYTES)).existed
        before = pool.bytes()
        client.resume()
        client.wait_line("put was stopped", 30)
        client.wait(30)
        after = pool.bytes()
        late = sum(before[at : at + 4096] != after[at : at + 4096] for at in range(0, POOL_BYTES, 4096)) * 4096
        wrong = 0
        for put, key in enumerate(keys):
            data = store.get(key)
            wrong += data is not None and data != values.value(key, put, seed=SEED, size=SMALL_BYTES)
    os.close(pool.fd)
    return late, wrong


@pytest.mark.timeout(300)
def test_a_stopped_writer_hits_its_own_place_only(tmp_path: Path) -> None:
    with start(tmp_path) as cluster:
        landed = 0
        for number in range(TRIES):
            late, wrong = late_and_wrong(cluster, number)
            print(f"{late} bytes landed late, {wrong} keys read wrong bytes")
            assert wrong == 0
            landed += late > 0
            until = time.monotonic() + 10
            while resting_bytes(cluster):
                assert time.monotonic() < until, "the space does not come back"
                time.sleep(0.1)
            if landed == 2:
                break
        assert landed, "no client was ever stopped in the middle of a copy"
        assert "its space waits" in cluster.processes["node-1"].output()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("change", ["blind_node", "no_quarantine"])
def test_without_protection_other_keys_read_wrong_bytes(tmp_path: Path, change: str) -> None:
    with start(tmp_path, change) as cluster:
        found = [late_and_wrong(cluster, 0)]
        while not found[-1][1] and len(found) < TRIES:
            found.append(late_and_wrong(cluster, len(found)))
        print(f"{change}: (bytes that landed late, keys that read wrong bytes): {found}")
        assert found[-1][1]
