"""What a store keeps alive: no buffer and no answer beyond its call, also where no collector ever comes by, and
of itself nothing at all once it is dropped.
"""

import asyncio
import contextlib
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import larder
import numpy as np
import pytest
from larder.pool_file import HEADER_BYTES

from demo.cluster import Cluster
from tests.contract.test_store_faults import places

MIB = 2**20
SIZES = [1000, 100_000, 8 * MIB]


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(params=["shm", "engine"])
def store(request: pytest.FixtureRequest, store_cluster: Cluster) -> Iterator[larder.Store]:
    with larder.connect(store_cluster.master, transports=[request.param], timeout_s=30) as store:
        store.put("size 1", b"x", copies=2)
        store.get("size 1")
        yield store


def buffer(size: int) -> Any:
    return np.zeros(size, dtype=np.uint8)


def is_released(use: Callable[[Any], object], size: int, make: Callable[[int], Any] = buffer) -> bool:
    """Whether nobody holds the memory once the call is over, not even for a moment."""
    memory = make(size)
    known = weakref.ref(memory)
    use(memory)
    del memory
    return known() is None


@pytest.mark.parametrize("size", SIZES)
def test_a_buffer_is_its_callers_alone_when_the_call_is_over(store: larder.Store, key: str, size: int) -> None:
    def refused(data: Any) -> None:
        with pytest.raises(larder.InvalidArgument):
            store.get_into(key, data)

    assert is_released(lambda data: store.put(key, data, copies=2), size)
    assert is_released(lambda data: store.put(key, data), size)  # exists
    assert is_released(lambda data: store.put_many([key, key + "2"], [data[:9], [data[:1], data[1:]]]), size)
    assert is_released(lambda data: store.get_into(key, data), size)
    assert is_released(lambda data: store.get_into("nothing", data), size)
    assert is_released(lambda data: store.get_many_into([key, "nothing"], [[data], bytearray(1)]), size)
    assert is_released(refused, size - 1)
    assert is_released(lambda data: store.get_into(key, data), size + 1)
    assert is_released(lambda data: store.get_many_into([key, key], [data, bytearray(size)]), size + 1)
    store.remove(key)


def test_a_buffer_is_released_where_a_put_is_refused(store: larder.Store) -> None:
    def refused(data: Any) -> None:
        with pytest.raises(larder.TooLarge):
            store.put("too large", [data] * 600)

    assert is_released(refused, MIB)


@pytest.mark.parametrize("size", SIZES)
def test_a_buffer_is_released_where_every_copy_is_corrupt(
    store_cluster: Cluster, store: larder.Store, key: str, size: int
) -> None:
    def lost(data: Any) -> None:
        store.put(key, bytes(size))
        found = places(store_cluster, key)
        with Path(found.segments[found.copy_segments[0]].shm_path).open("r+b") as pool:
            os.pwrite(pool.fileno(), b"spoilt", HEADER_BYTES + found.copy_offsets[0])
        with pytest.raises(larder.DataLost):
            store.get_into(key, data)

    assert is_released(lost, size)


@pytest.mark.parametrize("size", SIZES)
def test_tensors_and_views_are_released(store: larder.Store, key: str, size: int) -> None:
    torch = pytest.importorskip("torch")
    assert is_released(lambda tensor: store.put_tensor(key, tensor), size, torch.zeros)
    tensor = store.get_tensor(key)
    known = weakref.ref(tensor)
    del tensor
    assert known() is None

    def view(*, failing: bool) -> "weakref.ref[memoryview]":
        with contextlib.suppress(KeyError), store.view(key) as memory:
            assert memory is not None
            known = weakref.ref(memory)
            if failing:
                raise KeyError
        del memory
        return known

    assert view(failing=False)() is None
    assert view(failing=True)() is None
    store.remove(key)


def test_answers_are_released(store: larder.Store, key: str) -> None:
    store.put(key, os.urandom(8 * MIB))
    store.get(key)
    before = resident_bytes()
    peak = 0
    for _ in range(20):
        data = store.get(key)
        peak = max(peak, resident_bytes())
        del data
    assert peak - before < 4 * 8 * MIB
    store.remove(key)


async def test_a_cancelled_call_releases_its_buffer(store_cluster: Cluster, key: str) -> None:
    async with larder.aio.connect(store_cluster.master) as store:
        await store.put(key, bytes(8 * MIB))
        for use in (lambda data: store.get_into(key, data), lambda data: store.put(key + "2", data)):
            data = buffer(8 * MIB)
            known = weakref.ref(data)
            task = asyncio.create_task(use(data))
            await asyncio.sleep(0.003)
            task.cancel()
            await asyncio.wait([task])
            del data, task
            await asyncio.sleep(0.05)
            assert known() is None
        await store.remove(key)


def resident_bytes() -> int:
    """Without what is shared: pools are being mapped meanwhile."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


# ---- the store itself ----------------------------------------------------------------------------


def held() -> tuple[int, int]:
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def until_held_is(most: tuple[int, int]) -> None:
    deadline = time.monotonic() + 20
    while any(now > allowed for now, allowed in zip(held(), most, strict=True)):
        assert time.monotonic() < deadline, f"{held()} threads and descriptors, {most} before"
        time.sleep(0.02)


@pytest.mark.parametrize("transport", ["shm", "engine"])
def test_a_store_that_is_dropped_lets_go_of_its_threads_and_descriptors(
    store_cluster: Cluster, key: str, transport: str
) -> None:
    def use() -> None:
        store = larder.connect(store_cluster.master, transports=[transport])
        store.put(key, bytes(MIB))
        assert store.get(key) == bytes(MIB)

    use()  # what one has for the whole process, the next ones have too: engines are lent again
    time.sleep(1.0)
    before = held()
    for _ in range(10):
        use()
        time.sleep(0.1 if transport == "engine" else 0)
    until_held_is(before)


def test_a_store_that_is_dropped_in_a_loop_lets_go_too(store_cluster: Cluster, key: str) -> None:
    async def main() -> None:
        async def use() -> None:
            store = larder.aio.connect(store_cluster.master, transports=["shm"])
            await store.put(key, bytes(MIB))
            assert await store.get(key) == bytes(MIB)

        await use()
        await asyncio.sleep(1.0)
        before = held()
        for _ in range(10):
            await use()
        await asyncio.sleep(0.5)
        await asyncio.to_thread(until_held_is, (before[0] + 1, before[1]))

    asyncio.run(main())


@pytest.mark.parametrize("transport", ["shm", "engine"])
@pytest.mark.parametrize("outlives", [True, False])
def test_a_store_whose_loop_is_gone_lets_go_too(
    store_cluster: Cluster, key: str, transport: str, outlives: bool
) -> None:
    async def use() -> larder.aio.Store | None:
        store = larder.aio.connect(store_cluster.master, transports=[transport])
        await store.put(key, bytes(MIB))
        assert await store.get(key) == bytes(MIB)
        return store if outlives else None

    asyncio.run(use())
    time.sleep(0.5)
    before = held()
    for _ in range(10):
        asyncio.run(use())
        time.sleep(0.1 if transport == "engine" else 0)
    until_held_is(before)


async def test_a_close_that_is_cancelled_lets_go_too(store_cluster: Cluster, key: str) -> None:
    async def use() -> None:
        store = larder.aio.connect(store_cluster.master, transports=["engine"])
        await store.put(key, bytes(MIB))
        assert await store.get(key) == bytes(MIB)
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])

    await use()
    await asyncio.sleep(0.5)
    before = held()
    for _ in range(10):
        await use()
    await asyncio.to_thread(until_held_is, (before[0] + 1, before[1]))
