"""Processes that fork: a child has its bytes or is told at once why not, and the parent notices nothing.

Each case is a process of its own: what may hang or crash here must not take the tests along.
"""

import asyncio
import subprocess
import sys

import larder
import pytest

from demo.cluster import Cluster

BEGIN = """
import asyncio, multiprocessing, os, sys, threading, time
import larder
master, transport = sys.argv[1:]

def connect():
    return larder.connect(master, transports=[transport], timeout_s=5)

def child(body, *, leave=os._exit, most_s=5.0):
    '''Forks, and answers what the body says; it has to come to an end.'''
    pid = os.fork()
    if not pid:
        status = 1
        try:
            status = 0 if body() else 2
        finally:
            leave(status)
    end = time.monotonic() + most_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return "hangs"
        time.sleep(0.01)

def is_refused(call):
    begun = time.monotonic()
    try:
        call()
    except larder.Unavailable as error:
        return "spawn" in str(error) and "forkserver" in str(error) and time.monotonic() - begun < 0.5
    return False

def in_asyncio(work):
    async def main():
        async with larder.aio.connect(master, transports=[transport]) as store:
            return await work(store)
    return asyncio.run(main())

DATA = b"data" * 1000
"""

SCRIPTS = {
    "a child of a store in use is refused at once": """
store = connect()
store.put("crossing", DATA)
calls = [
    lambda: store.get("crossing"),
    lambda: store.put("other", DATA),
    lambda: store.get_into("crossing", bytearray(4000)),
    lambda: store.view("crossing").__enter__(),
    lambda: store.match(["crossing"]),
    lambda: connect().get("crossing"),
    lambda: in_asyncio(lambda store: store.get("crossing")),
]
for leave in (os._exit, sys.exit):
    for call in calls:
        assert child(lambda: is_refused(call), leave=leave) == 0
assert child(lambda: [store.stats(), store.close(), connect().close()]) == 0
assert store.get("crossing") == DATA
""",
    "a child of an asyncio store in use is refused at once": """
async def main():
    async with larder.aio.connect(master, transports=[transport]) as store:
        await store.put("crossing", DATA)
        assert child(lambda: is_refused(lambda: connect().get("crossing"))) == 0
        assert await store.get("crossing") == DATA
        other = await asyncio.gather(*[store.get("crossing") for _ in range(100)])
        assert other == [DATA] * 100
asyncio.run(main())
""",
    "the grandchild is refused as well": """
store = connect()
store.put("crossing", DATA)
assert child(lambda: child(lambda: is_refused(lambda: connect().get("crossing"))) == 0) == 0
""",
    "who forks before the first call has stores on both sides": """
store = connect()
def work():
    store.put("crossing", DATA)
    return store.get("crossing") == DATA
assert child(work) == 0
assert store.get("crossing") == DATA
""",
    "a child is refused also where all stores were closed": """
with connect() as store:
    store.put("crossing", DATA)
assert in_asyncio(lambda store: store.get("crossing")) == DATA
for leave in (os._exit, sys.exit):
    assert child(lambda: is_refused(lambda: connect().get("crossing")), leave=leave) == 0
assert connect().get("crossing") == DATA
""",
    "threads that read go on while children come and go": """
store = connect()
store.put("crossing", DATA)
counts = [0] * 3
over = threading.Event()

def read(number):
    while not over.is_set():
        assert store.get("crossing") == DATA
        counts[number] += 1

def work(answers):
    answers.put(is_refused(lambda: connect().get("crossing")))

readers = [threading.Thread(target=read, args=[number], daemon=True) for number in range(3)]
for reader in readers:
    reader.start()
fork = multiprocessing.get_context("fork")
for _ in range(30):
    assert all(reader.is_alive() for reader in readers)
    before = list(counts)
    answers = fork.SimpleQueue()
    process = fork.Process(target=work, args=[answers])
    process.start()
    process.join(10)
    assert process.exitcode == 0, process.exitcode
    assert answers.get()
    end = time.monotonic() + 10
    while any(now < old + 3 for now, old in zip(counts, before)):
        assert time.monotonic() < end, (before, counts)
        time.sleep(0.01)
over.set()
for reader in readers:
    reader.join(10)
    assert not reader.is_alive()
""",
}


@pytest.mark.parametrize("transport", ["shm", "engine"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_forks(cluster: Cluster, name: str, transport: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", BEGIN + SCRIPTS[name], cluster.master, transport],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "fork()" not in result.stderr  # what gRPC says when it leaves its own handlers of forks out


@pytest.mark.parametrize("transport", ["shm", "engine"])
async def test_the_loops_own_threads_are_not_used(cluster: Cluster, key: str, transport: str) -> None:
    """A forked child has none of them, and would wait for them where its asyncio.run() ends."""
    async with larder.aio.connect(cluster.master, transports=[transport]) as store:
        await store.put(key, bytes(2**20))
        assert await store.get(key) == bytes(2**20)
    assert asyncio.get_running_loop()._default_executor is None  # type: ignore[attr-defined]
