"""What takes a real cluster and its time: full pools, leases that end, cancelled puts, batches, ends of processes."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time

import larder
import pytest

from demo.cluster import Cluster

MIB = 2**20
NODES = ("node-1", "node-2")


def test_no_room_is_said(fragile: Cluster) -> None:
    with larder.connect(fragile.master, timeout_s=2) as store:
        with pytest.raises(larder.TooLarge) as caught:
            store.put("key", bytes(200 * MIB))
        assert isinstance(caught.value, larder.NoSpace)
        keys = [f"key-{index}" for index in range(12)]
        store.put_many(keys, [bytes(9 * MIB)] * 12)
        with contextlib.ExitStack() as views:  # whose leases last as long: nothing of these can be evicted now
            found = [views.enter_context(store.view(key)) for key in keys]
            assert sum(memory is not None for memory in found) >= 8
            begun = time.monotonic()
            with pytest.raises(larder.NoSpace) as caught:
                store.put("one more", bytes(40 * MIB))
        assert caught.value.key == b"one more"
        assert time.monotonic() - begun < 3


def test_a_view_that_outlives_its_lease_says_so(cluster: Cluster, key: str) -> None:
    with larder.connect(cluster.master) as store:
        store.put(key, b"data" * 1000)
        view = store.view(key)
        assert view.__enter__() == b"data" * 1000
        time.sleep(3.2)
        with pytest.raises(larder.LeaseExpired, match="read again"):
            view.__exit__(None, None, None)
        with store.view(key) as memory:
            assert memory == b"data" * 1000


async def test_a_read_that_outlives_its_lease_is_looked_up_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    async with larder.aio.connect(cluster.master, transports=["shm"], timeout_s=20) as store:
        data = os.urandom(MIB)
        await store.put(key, data)
        parts = store._open()
        lookups: list[int] = []
        honest, read = parts.master.lookup, parts.mover.shm.read

        async def lookup(*args: object, **kwargs: object) -> object:
            lookups.append(1)
            return await honest(*args, **kwargs)

        async def slow_once(*args: object) -> object:
            if len(lookups) == 1:
                await asyncio.sleep(3.2)
            return await read(*args)

        monkeypatch.setattr(parts.master, "lookup", lookup)
        monkeypatch.setattr(parts.mover.shm, "read", slow_once)
        assert await store.get(key) == data
        assert len(lookups) == 2


async def test_what_is_read_after_every_lease_is_thrown_away(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    async with larder.aio.connect(cluster.master, transports=["shm"], timeout_s=20) as store:
        await store.put(key, b"data")
        shm = store._open().mover.shm
        read = shm.read

        async def slow(*args: object) -> object:
            await asyncio.sleep(3.2)
            return await read(*args)

        monkeypatch.setattr(shm, "read", slow)
        with pytest.raises(larder.DeadlineExceeded):
            await store.get(key)


async def test_a_cancelled_put_is_aborted(cluster: Cluster, key: str) -> None:
    async with larder.aio.connect(cluster.master, timeout_s=10) as store:
        started = asyncio.Event()
        master = store._open().master

        async def never(*args: object, **kwargs: object) -> None:
            await asyncio.Event().wait()

        master.put_end = never  # type: ignore[method-assign]
        putting = asyncio.create_task(store.put_many([key], [bytes(MIB)], started=started.set))
        await started.wait()
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        for _ in range(100):
            status = await master.status(deadline=time.monotonic() + 5)
            if not status.writes_in_flight:
                return
            await asyncio.sleep(0.05)
        pytest.fail("the write is still open")


def test_match_waits_for_a_put_under_way(cluster: Cluster) -> None:
    with larder.connect(cluster.master) as store:
        store.put("first", b"data")
        assert store.match(["first", "second"], wait_s=5.0) == 1  # nobody writes it: nothing to wait for
        found: list[int] = []
        reader = threading.Thread(target=lambda: found.append(store.match(["first", "second"], wait_s=5.0)))

        def begun() -> None:
            reader.start()
            time.sleep(0.5)

        with larder.connect(cluster.master) as writer:
            writer.put_many(["second"], [b"data"], started=begun)
        reader.join(5)
        assert found == [2]


def test_batches_beyond_one_calls_limit_are_split(cluster: Cluster) -> None:
    with larder.connect(cluster.master, timeout_s=60) as store:
        keys = [f"key-{index:06d}" for index in range(20_000)]
        calls: list[int] = []
        results = store.put_many(keys, [key.encode() for key in keys], started=lambda: calls.append(1))
        assert calls == [1]
        assert all(isinstance(result, larder.PutResult) for result in results)
        assert store.match([*keys, "missing"]) == 20_000
        assert store.exists([*keys, "missing"]) == [True] * 20_000 + [False]
        assert store.get_many([*keys, "missing"]) == [*(key.encode() for key in keys), None]


SCRIPTS = {
    "without closing": """
import larder, sys
store = larder.connect(sys.argv[1], transports=[sys.argv[2]])
store.put("exit", b"data" * 1000)
assert store.get("exit") == b"data" * 1000
""",
    "with a call under way": """
import larder, sys, threading, time
store = larder.connect(sys.argv[1], transports=[sys.argv[2]], timeout_s=30)
store.put("exit-2", b"data" * 1000)
def work():
    while store.get("exit-2"):
        pass
def quietly():
    try:
        work()
    except larder.StoreClosed:
        pass
threading.Thread(target=quietly, daemon=True).start()
time.sleep(0.3)
""",
    "after a fork": """
import larder, os, sys
store = larder.connect(sys.argv[1], transports=[sys.argv[2]])
if os.fork() == 0:
    store.put("forked", b"data")  # not used before the fork: it is the child's own
    os._exit(0 if store.get("forked") == b"data" else 1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
assert store.get("forked") == b"data"
if os.fork() == 0:
    try:
        store.get("forked")
    except larder.Unavailable as error:
        os._exit(0 if "fork" in str(error) else 1)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
assert store.get("forked") == b"data"
""",
}


@pytest.mark.parametrize("transport", ["shm", "engine"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_process_ends_in_peace(cluster: Cluster, name: str, transport: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPTS[name], cluster.master, transport],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
