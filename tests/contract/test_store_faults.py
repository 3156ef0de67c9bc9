"""What only a real store can meet: corrupt bytes, killed and frozen nodes, a missing or frozen master, leases that end.

Bytes are spoilt in the pool files behind the store's back. Who kills, freezes or fills a part has a cluster of his own.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import larder
import pytest
from larder.pool_file import HEADER_BYTES
from larder.v1 import master_pb2, master_pb2_grpc, types_pb2
from larder.wire import pack_keys

from demo.cluster import Cluster, free_port
from demo.traffic import metric

MIB = 2**20
NODES = ("node-1", "node-2")


@pytest.fixture(params=["shm", "engine"])
def store(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[larder.Store]:
    with larder.connect(cluster.master, transports=[request.param]) as store:
        yield store


def places(cluster: Cluster, key: str) -> types_pb2.Places:
    with grpc.insecure_channel(cluster.master) as channel:
        request = master_pb2.LookupRequest(keys=pack_keys([key.encode()]))
        return master_pb2_grpc.MasterStub(channel).Lookup(request, timeout=5).places


def copies(found: types_pb2.Places) -> list[tuple[str, int]]:
    """(node, offset) of each copy."""
    pairs = zip(found.copy_segments, found.copy_offsets, strict=True)
    return [(found.segments[index].node_id, offset) for index, offset in pairs]


def spoil(cluster: Cluster, key: str, nodes: int) -> list[tuple[str, int]]:
    """Flips a byte of the first slice's copies on so many nodes; says which."""
    found = places(cluster, key)
    for index, offset in list(zip(found.copy_segments, found.copy_offsets, strict=True))[:nodes]:
        with Path(found.segments[index].shm_path).open("r+b") as pool:
            at = HEADER_BYTES + offset + 3
            byte = os.pread(pool.fileno(), 1, at)
            os.pwrite(pool.fileno(), bytes([byte[0] ^ 1]), at)
    return copies(found)[:nodes]


def stored(cluster: Cluster, key: str, length: int) -> list[bytes]:
    """The bytes of each copy of a one-slice object."""
    found = places(cluster, key)
    held = []
    for index, offset in zip(found.copy_segments, found.copy_offsets, strict=True):
        with Path(found.segments[index].shm_path).open("rb") as pool:
            held.append(os.pread(pool.fileno(), length, HEADER_BYTES + offset))
    return held


def stop_process(cluster: Cluster, name: str, how: signal.Signals) -> None:
    os.kill(cluster.processes[name].pid, how)
    if how is signal.SIGSTOP:
        time.sleep(0.2)  # its threads come to a halt one by one


def until_true(condition: object, seconds: float = 15.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.05)


def test_a_corrupt_copy_is_passed_over_dropped_and_made_again(cluster: Cluster, store: larder.Store, key: str) -> None:
    data = os.urandom(MIB)
    store.put(key, data, copies=2)
    condemned = metric(cluster.metrics["master"], "larder_master_corrupt_copies_total")
    (spoilt,) = spoil(cluster, key, nodes=1)
    for _ in range(16):  # either copy is chosen first by chance
        assert store.get(key) == data
    until_true(lambda: spoilt not in (held := copies(places(cluster, key))) and len(held) == 2)
    assert stored(cluster, key, MIB) == [data, data]
    assert metric(cluster.metrics["master"], "larder_master_corrupt_copies_total") == condemned + 1
    assert store.stats()["read_faults_corrupt"] >= 1
    assert store.stats()["failovers"] >= 1


def test_all_copies_corrupt_is_an_error_and_then_a_miss(cluster: Cluster, store: larder.Store, key: str) -> None:
    store.put(key, os.urandom(MIB), copies=2)
    spoil(cluster, key, nodes=2)
    with pytest.raises(larder.DataLost, match="checksum") as caught:
        store.get(key)
    assert caught.value.key == key.encode()
    assert caught.value.node in NODES
    until_true(lambda: store.get_many([key]) == [None])
    store.put(key, b"new")
    assert store.get(key) == b"new"


def test_a_corrupt_view_is_not_shown(cluster: Cluster, key: str) -> None:
    with larder.connect(cluster.master) as store:
        data = os.urandom(MIB)
        store.put(key, data, copies=2)
        spoil(cluster, key, nodes=1)
        with store.view(key) as memory:
            assert memory == data


def test_without_verify_corruption_goes_unseen(cluster: Cluster, store: larder.Store, key: str) -> None:
    """So the tests above are able to fail."""
    data = os.urandom(MIB)
    store.put(key, data)
    spoil(cluster, key, nodes=1)
    with larder.connect(cluster.master, verify=False) as trusting:
        found = trusting.get(key)
    assert found is not None
    assert found != data
    with larder.connect(cluster.master, verify=False) as trusting:
        trusting.put(key + "unhashed", data)
    assert list(places(cluster, key + "unhashed").checksums) == [0]
    assert store.get(key + "unhashed") == data


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_reads_fail_over_from_a_lost_node(fragile: Cluster, how: signal.Signals) -> None:
    with larder.connect(fragile.master, transports=["engine"], timeout_s=8) as store:
        keys = [f"key-{index}" for index in range(20)]
        data = [os.urandom(300_000) for _ in keys]
        store.put_many(keys, data, copies=2)
        assert store.get_many(keys) == data
        stop_process(fragile, "node-1", how)
        begun = time.monotonic()
        assert store.get_many(keys) == data
        assert time.monotonic() - begun < 4
        buffers = [bytearray(300_000) for _ in keys]
        assert store.get_many_into(keys, buffers) == [300_000] * 20
        assert buffers == data
        stop_process(fragile, "node-1", signal.SIGCONT) if how is signal.SIGSTOP else None


def test_a_frozen_node_does_not_delay_the_keys_of_others(fragile: Cluster) -> None:
    with larder.connect(fragile.master, transports=["engine"], timeout_s=8) as store:
        keys: dict[str, list[str]] = {node: [] for node in NODES}
        data = os.urandom(300_000)
        while min(map(len, keys.values())) < 5:
            key = f"key-{sum(map(len, keys.values()))}"
            store.put(key, data)
            ((node, _),) = copies(places(fragile, key))
            keys[node].append(key)
        frozen, other = NODES
        stop_process(fragile, frozen, signal.SIGSTOP)
        stuck = threading.Thread(target=store.get_many, args=[keys[frozen]], daemon=True)
        stuck.start()
        for key in 4 * keys[other][:5]:
            begun = time.monotonic()
            assert store.get(key) == data
            assert time.monotonic() - begun < 0.25
        assert stuck.is_alive()
        stop_process(fragile, frozen, signal.SIGCONT)
        stuck.join(10)
        assert not stuck.is_alive()


@pytest.mark.parametrize("into", [False, True])
def test_a_read_that_hangs_is_hedged_and_the_node_then_passed_over(fragile: Cluster, into: bool) -> None:
    with larder.connect(fragile.master, transports=["engine"], timeout_s=8) as store:
        data = os.urandom(300_000)
        keys = [f"key-{index}" for index in range(8)]
        store.put_many(keys, [data] * 8, copies=2)
        for key in 4 * keys:
            assert store.get(key) == data
        before = store.stats()
        stop_process(fragile, "node-1", signal.SIGSTOP)
        begun = time.monotonic()
        for key in 2 * keys:
            buffer = bytearray(300_000)
            assert (store.get_into(key, buffer) and buffer if into else store.get(key)) == data
        assert time.monotonic() - begun < 0.8  # less than one stall
        now = store.stats()
        assert 1 <= now["hedges_won"] - before.get("hedges_won", 0) <= 3
        assert "read_faults_stalled" not in now
        stop_process(fragile, "node-1", signal.SIGCONT)


def test_a_lone_copy_on_a_dead_node_is_unreachable_or_missed_but_never_wrong(fragile: Cluster) -> None:
    with larder.connect(fragile.master, transports=["engine"]) as store:
        keys = [f"key-{index}" for index in range(10)]
        store.put_many(keys, [b"data" * 1000] * 10)
        stop_process(fragile, "node-1", signal.SIGKILL)
        for answer in store.get_many(keys):
            assert answer is None or answer == b"data" * 1000 or isinstance(answer, larder.Unreachable)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_put_survives_the_loss_of_one_of_its_nodes(fragile: Cluster, how: signal.Signals) -> None:
    """The node goes when the places are known and before the bytes are written."""
    with larder.connect(fragile.master, transports=["engine"], timeout_s=10) as store:
        store.put("warm", b"x", copies=2)
        keys, data = ["a", "b"], [os.urandom(400_000), os.urandom(400_000)]
        results = store.put_many(keys, data, copies=2, started=lambda: stop_process(fragile, "node-1", how))
        assert [isinstance(result, larder.PutResult) and result.copies for result in results] == [1, 1]
        assert store.get_many(keys) == data
        stop_process(fragile, "node-1", signal.SIGCONT) if how is signal.SIGSTOP else None


def test_a_put_whose_only_node_is_lost_says_so(fragile: Cluster) -> None:
    with larder.connect(fragile.master, transports=["engine"], timeout_s=5) as store:
        store.put("warm", b"x", copies=2)

        def kill_both() -> None:
            for node in NODES:
                stop_process(fragile, node, signal.SIGKILL)

        (answer,) = store.put_many(["key"], [b"data"], started=kill_both)
        assert isinstance(answer, larder.WriteFailed)
        assert answer.key == b"key"
        assert store.exists(["key"]) == [False]


def test_no_master_is_unavailable_within_the_deadline() -> None:
    with larder.connect(f"127.0.0.1:{free_port()}", timeout_s=0.7) as store:
        calls = (
            lambda: store.get("key"),
            lambda: store.put("key", b"data"),
            lambda: store.match(["key"]),
            lambda: store.exists(["key"]),
            lambda: store.remove("key"),
            lambda: store.get_into("key", bytearray(4)),
            lambda: store.view("key").__enter__(),
        )
        for call in calls:
            begun = time.monotonic()
            with pytest.raises(larder.Unavailable):
                call()
            assert 0.3 < time.monotonic() - begun < 1.5


def test_a_frozen_master_is_unavailable_and_then_again_there(fragile: Cluster) -> None:
    with larder.connect(fragile.master, timeout_s=1) as store:
        store.put("key", b"data")
        stop_process(fragile, "master", signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(larder.Unavailable):
            store.get("key")
        assert time.monotonic() - begun < 2
        stop_process(fragile, "master", signal.SIGCONT)

        def answers() -> bool:
            with contextlib.suppress(larder.Unavailable):
                return store.get("key") == b"data"
            return False

        until_true(answers)


def test_a_call_outlasts_a_short_absence_of_the_master(fragile: Cluster) -> None:
    with larder.connect(fragile.master, timeout_s=15) as store:
        store.match(["key"])
        stop_process(fragile, "master", signal.SIGKILL)
        port = int(fragile.master.rpartition(":")[2])
        again = threading.Timer(1.0, lambda: fragile.start_master("--lease-ms", "3000", port=port))
        again.start()
        assert store.match(["key"]) == 0
        again.join()


def test_the_second_of_several_addresses_is_found(cluster: Cluster, key: str) -> None:
    with larder.connect(f"127.0.0.1:{free_port()}, {cluster.master}") as store:
        store.put(key, b"data")
        assert store.get(key) == b"data"
