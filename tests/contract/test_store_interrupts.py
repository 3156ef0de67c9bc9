"""Calls that are broken off: by an exception of a signal handler, or by cancellation. Once the exception has left, the
caller's memory is his own again: a put that was broken off stores nothing, and nothing lands in a buffer any more.
"""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import larder
import numpy as np
import pytest
from larder.calls import Call
from larder.loops import LoopThread
from larder.transports import pump, shm

from demo.cluster import Cluster

MIB = 2**20
SIZE = 16 * MIB
OLD, NEW = 1, 2


class Interrupt(Exception):
    """What a signal handler of the caller's raises."""


class Copying:
    """Holds up the threads that touch a call's bytes until it was broken off, and tells whether they are at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.broken_off = threading.Event(), threading.Event()
        self.at_it = 0
        self._lock = threading.Lock()
        for module, name in ((shm, "store_pieces"), (shm, "load_pieces"), (pump, "hash_move"), (pump, "unload")):
            monkeypatch.setattr(module, name, self._watched(getattr(module, name)))

    def _watched(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.at_it += 1
            self.begun.set()
            try:
                if threading.current_thread() is not threading.main_thread():  # whose loop lends a hand with copying
                    self.broken_off.wait(10)
                time.sleep(0.01)
                return work(*args, **kwargs)
            finally:
                with self._lock:
                    self.at_it -= 1

        return watched

    def arm(self) -> None:
        self.begun.clear()
        self.broken_off.clear()


@contextmanager
def signals(copying: Copying) -> Iterator[None]:
    """From then on that bytes are touched a signal each millisecond, whose handler raises inside calls."""
    over = threading.Event()

    def handle(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code is Call.result.__code__:
                raise Interrupt
            frame = frame.f_back

    def send() -> None:
        copying.begun.wait(10)
        while not over.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
            over.wait(0.001)
            copying.broken_off.set()

    copying.arm()
    before = signal.signal(signal.SIGUSR1, handle)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        copying.begun.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> Copying:
    copying = Copying(monkeypatch)
    copying.broken_off.set()
    return copying


@pytest.fixture(params=["shm", "engine"])
def store(request: pytest.FixtureRequest, store_cluster: Cluster) -> Iterator[larder.Store]:
    with larder.connect(store_cluster.master, transports=[request.param], timeout_s=30) as store:
        store.put("warm", b"x" * MIB)
        yield store
        store.remove("warm")


@pytest.mark.parametrize("how", ["put", "put_many", "put_tensor"])
def test_a_put_that_an_exception_breaks_off_stores_nothing(
    store: larder.Store, copying: Copying, key: str, how: str
) -> None:
    data = np.full(SIZE, OLD, dtype=np.uint8)
    calls = {
        "put": lambda: store.put(key, data),
        "put_many": lambda: store.put_many([key, key + "2"], [data[: SIZE // 2], data[SIZE // 2 :]]),
        "put_tensor": lambda: store.put_tensor(key, _tensor(data)),
    }
    with signals(copying), pytest.raises(Interrupt):
        calls[how]()
    assert copying.at_it == 0
    data[:] = NEW
    assert store.get_many([key, key + "2"]) == [None, None]
    assert store.put(key, data).copies == 1
    found = store.get(key)
    assert found is not None
    assert found.count(NEW) == SIZE
    store.remove(key)


@pytest.mark.parametrize("how", ["get_into", "get_many_into"])
def test_nothing_lands_after_an_exception_broke_a_get_off(
    store: larder.Store, copying: Copying, key: str, how: str
) -> None:
    store.put(key, np.full(SIZE, OLD, dtype=np.uint8))
    buffer = np.zeros(SIZE, dtype=np.uint8)
    calls = {
        "get_into": lambda: store.get_into(key, buffer),
        "get_many_into": lambda: store.get_many_into(["warm", key], [bytearray(MIB), buffer]),
    }
    with signals(copying), pytest.raises(Interrupt):
        calls[how]()
    assert copying.at_it == 0
    buffer[:] = NEW
    time.sleep(0.1)
    assert (buffer == NEW).all()
    assert store.get_into(key, buffer) == SIZE
    assert (buffer == OLD).all()
    store.remove(key)


@pytest.mark.parametrize("transport", ["shm", "engine"])
async def test_a_cancelled_call_has_ended_before_it_says_so(
    store_cluster: Cluster, copying: Copying, key: str, transport: str
) -> None:
    async with larder.aio.connect(store_cluster.master, transports=[transport], timeout_s=30) as store:
        data = np.full(SIZE, OLD, dtype=np.uint8)
        await cancelled(store.put(key, data), copying)
        data[:] = NEW
        assert await store.get(key) is None
        await store.put(key, data)
        data[:] = OLD
        await cancelled(store.get_into(key, data), copying)
        data[:] = OLD
        await asyncio.sleep(0.1)
        assert (data == OLD).all()
        await store.remove(key)


async def cancelled(call: Any, copying: Copying) -> None:
    """Cancels it, twice, when its bytes are being copied."""
    copying.arm()
    task = asyncio.ensure_future(call)
    await asyncio.to_thread(copying.begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    copying.broken_off.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert copying.at_it == 0


async def test_a_put_cancelled_before_it_knows_its_writes_leaves_none_open(store_cluster: Cluster, key: str) -> None:
    async with larder.aio.connect(store_cluster.master) as store:
        await store.exists([key])
        master = store._open().master
        honest, asked = master.put_start, asyncio.Event()

        async def put_start(*args: Any, **kwargs: Any) -> Any:
            started = await honest(*args, **kwargs)
            asked.set()
            await asyncio.sleep(0.05)
            return started

        master.put_start = put_start  # type: ignore[method-assign]
        putting = asyncio.create_task(store.put(key, bytes(MIB)))
        await asked.wait()
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        async with asyncio.timeout(5):
            while (await master.status(deadline=time.monotonic() + 5)).writes_in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def test_a_close_that_an_exception_breaks_off_can_be_made_up_for(
    store_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_off(*_: Any, **__: Any) -> None:
        raise Interrupt

    store = larder.connect(store_cluster.master)
    store.exists(["key"])
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "larder")
    with monkeypatch.context() as patch:
        patch.setattr(LoopThread, "stop", broken_off)
        with pytest.raises(Interrupt):
            store.close()
    with pytest.raises(larder.StoreClosed):
        store.exists(["key"])
    store.close()
    assert not thread.is_alive()


def _tensor(data: Any) -> Any:
    torch = pytest.importorskip("torch")
    return torch.from_numpy(data)
