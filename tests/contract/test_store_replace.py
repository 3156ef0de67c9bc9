"""Puts that replace, over the reference model and the real store: who reads meanwhile has the old bytes or the new."""

import os
import threading
import time
from typing import Any

import larder
import pytest

from demo.cluster import Cluster
from demo.traffic import metric
from tests.contract.commands import larder as larder_command
from tests.contract.conftest import NODES

MIB = 2**20


@pytest.mark.parametrize("size", [1, 3 * MIB])
def test_a_key_gets_new_bytes_of_any_size(store: Any, key: str, size: int) -> None:
    data = os.urandom(size)
    assert store.put(key, b"old") == larder.PutResult(copies=1, existed=False)
    assert store.put(key, data, replace=True) == larder.PutResult(copies=1, existed=False)
    assert store.get(key) == data
    assert store.put(key, b"other") == larder.PutResult(copies=0, existed=True)
    assert store.put(key + "2", b"new", replace=True) == larder.PutResult(copies=1, existed=False)
    assert store.remove(key) is True
    assert store.get_many([key, key + "2"]) == [None, b"new"]


def test_a_key_twice_in_a_batch_gets_the_last_bytes(store: Any, key: str) -> None:
    store.put(key, b"old")
    results = store.put_many([key, key], [b"first", b"second"], replace=True)
    assert [isinstance(result, larder.PutResult) for result in results] == [True, True]
    assert store.get(key) == b"second"


def test_life_and_copies_are_those_of_the_new(store: Any, key: str) -> None:
    store.put(key, b"old", ttl_s=0.5)
    assert store.put(key, b"new", copies=2, replace=True).copies == 2
    store.put(key + "2", b"old")
    store.put(key + "2", b"new", ttl_s=0.5, replace=True)
    time.sleep(0.6)
    assert store.get_many([key, key + "2"]) == [b"new", None]


def test_a_view_of_the_old_stays_what_it_is(store: Any, key: str) -> None:
    old, new = os.urandom(MIB), os.urandom(MIB)
    store.put(key, old)
    with store.view(key) as memory:
        for _ in range(4):
            store.put(key, new, replace=True)
        assert memory == old
        assert store.get(key) == new


@pytest.mark.parametrize("value", [1, "yes", None])
def test_replace_is_true_or_false(store: Any, key: str, value: Any) -> None:
    with pytest.raises(larder.InvalidArgument, match="replace is"):
        store.put(key, b"bytes", replace=value)


@pytest.mark.parametrize("transport", ["shm", "engine"])
def test_readers_have_the_old_or_the_new_and_never_a_mixture(store_cluster: Cluster, key: str, transport: str) -> None:
    """Objects of three slices, each of one byte over and over: a mixture of two would show."""
    done = threading.Event()
    seen: set[int] = set()

    def read() -> None:
        with larder.connect(store_cluster.master, transports=[transport], timeout_s=20) as reader:
            while not done.is_set():
                data = reader.get(key)
                assert data is not None, "there is one at any time"
                assert len(set(data)) == 1
                assert len(data) == 3 * MIB - data[0]
                seen.add(data[0])

    with larder.connect(store_cluster.master, transports=[transport], timeout_s=20) as store:
        store.put(key, bytes(3 * MIB))
        errors: list[BaseException] = []

        def reading() -> None:
            try:
                read()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=reading) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(1, 40):
            assert store.put(key, bytes([number]) * (3 * MIB - number), copies=2, replace=True).copies == 2
            data = store.get(key)
            assert data is not None
            assert data[0] == number
        done.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert len(seen) > 2


def test_a_master_that_starts_later_finds_the_new(fragile: Cluster) -> None:
    with larder.connect(fragile.master, timeout_s=2) as store:
        store.put("key", b"old", copies=2)
        store.put("key", b"newer", copies=2, replace=True)
        fragile.processes["master"].kill()
        fragile.start_master("--lease-ms", "3000", port=int(fragile.master.rpartition(":")[2]))
        until = time.monotonic() + 20
        while metric(fragile.metrics["master"], "larder_master_nodes", state="attached") < len(NODES):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert store.get("key") == b"newer"


def test_the_command_replaces_where_it_is_told_to(store_cluster: Cluster, key: str) -> None:
    def put(data: bytes, *flags: str) -> bytes:
        return larder_command("--master", store_cluster.master, "put", key, "-", *flags, stdin=data).stdout

    assert put(b"old").endswith(b"3 B, copies: 1\n")
    assert put(b"other").endswith(b"existed, and stays as it is\n")
    assert put(b"newer", "--replace").endswith(b"5 B, copies: 1\n")
    with larder.connect(store_cluster.master) as store:
        assert store.get(key) == b"newer"
