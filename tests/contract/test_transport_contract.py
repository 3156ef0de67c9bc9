"""One suite over both transports, with a real engine in a process of its own, which is also killed and frozen."""

import asyncio
import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from larder.memory import Memory, destination, fresh_bytes, source
from larder.places import Fault, Segment
from larder.pool_file import HEADER_BYTES
from larder.transports import Move, Reach
from larder.transports.copiers import Copiers
from larder.transports.engine import PROBE_S, EngineTransport
from larder.transports.shm import SharedMemory

MIB = 2**20
CAPACITY_BYTES = 64 * MIB
PEER = Path(__file__).with_name("transport_peer.py")
START_S = 60.0


class Peer:
    """A pool and its engine, in a process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, str(PEER), str(path), str(CAPACITY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        ready = next((line for line in self.process.stdout if line.startswith("peer ready: ")), None)
        if ready is None:
            self.close()
            raise RuntimeError("the peer did not start")
        facts = json.loads(ready.removeprefix("peer ready: "))
        self.segment = Segment(
            id=1,
            node_id="peer",
            capacity_bytes=CAPACITY_BYTES,
            shm_path=str(path),
            shm_token=bytes.fromhex(facts["token"]),
            shm_data_offset=HEADER_BYTES,
            engine_endpoint=facts["endpoint"],
            engine_base=facts["base"],
            engine_protocol="tcp",
        )

    def peek(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), length, HEADER_BYTES + offset)

    def poke(self, offset: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), data, HEADER_BYTES + offset)

    def freeze(self) -> None:
        """Returns when every thread stands still."""
        self.process.send_signal(signal.SIGSTOP)
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            while (task / "stat").read_text().rpartition(") ")[2][0] != "T":
                time.sleep(0.001)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.kill()


@pytest.fixture(scope="module")
def pool_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="larder-", dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def shared_peer(pool_dir: Path) -> Iterator[Peer]:
    peer = Peer(pool_dir / "shared.pool")
    yield peer
    peer.close()


@pytest.fixture
def peer(pool_dir: Path) -> Iterator[Peer]:
    """For those who kill or freeze it."""
    peer = Peer(pool_dir / "own.pool")
    yield peer
    peer.close()


@pytest.fixture
async def engine() -> AsyncIterator[EngineTransport]:
    copiers = Copiers()
    transport = EngineTransport(copiers)
    yield transport
    await transport.close()
    copiers.close()


@pytest.fixture(params=["shm", "engine"])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    copiers = Copiers()
    transport = SharedMemory(copiers) if request.param == "shm" else EngineTransport(copiers)
    yield transport
    await transport.close()
    copiers.close()


def soon(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


def digest(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data)


def fresh(length: int) -> tuple[bytes | bytearray, Memory]:
    if length > 1:
        return fresh_bytes(length)
    data = bytearray(length)
    return data, destination(data)


async def until_true(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = soon(seconds)
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        await asyncio.sleep(0.01)


SIZES = (1, 7, 4096, 65_536, 65_537, 512 * 1024 + 1, 3 * MIB, 20 * MIB)


@pytest.mark.parametrize("size", SIZES)
async def test_bytes_arrive_and_come_back(transport: Any, shared_peer: Peer, size: int) -> None:
    data, offset = os.urandom(size), 4099
    out = Move(source(data), offset, hashing=True)
    assert await transport.write(shared_peer.segment, [out], soon()) == [None]
    assert out.checksum == digest(data)
    assert shared_peer.peek(offset, size) == data
    for private in (True, False):
        found, memory = fresh(size) if private else (bytearray(size), None)
        memory = memory or destination(found)
        back = Move(memory, offset, checksum=digest(data), private=private)
        assert await transport.read(shared_peer.segment, [back], soon()) == [None]
        assert found == data


async def test_without_hashing_nothing_is_hashed_or_checked(transport: Any, shared_peer: Peer) -> None:
    data = os.urandom(100_000)
    move = Move(source(data), 0)
    assert await transport.write(shared_peer.segment, [move], soon()) == [None]
    assert move.checksum == 0
    shared_peer.poke(5, b"garbage")
    found, memory = fresh_bytes(len(data))
    assert await transport.read(shared_peer.segment, [Move(memory, 0, private=True)], soon()) == [None]
    assert found[5:12] == b"garbage"


@pytest.mark.parametrize("piece", [1, 5000, 40_000, 600_000])
async def test_gather_and_scatter(transport: Any, shared_peer: Peer, piece: int) -> None:
    pieces = [os.urandom(piece + number) for number in range(20)]
    data = b"".join(pieces)
    out = Move(source(pieces), 0, hashing=True)
    assert await transport.write(shared_peer.segment, [out], soon()) == [None]
    assert out.checksum == digest(data)
    assert shared_peer.peek(0, len(data)) == data
    targets = [bytearray(len(part)) for part in reversed(pieces)]
    back = Move(destination(targets), 0, checksum=digest(data))
    assert await transport.read(shared_peer.segment, [back], soon()) == [None]
    assert b"".join(targets) == data


async def test_many_at_once_and_one_of_them_bad(transport: Any, shared_peer: Peer) -> None:
    data = [os.urandom(1000 + 300 * number) for number in range(300)]
    offsets = [100_000 * number for number in range(300)]
    out = [Move(source(each), offset, hashing=True) for each, offset in zip(data, offsets, strict=True)]
    assert await transport.write(shared_peer.segment, out, soon()) == [None] * 300
    shared_peer.poke(offsets[123] + 7, bytes(64))
    found = [fresh_bytes(len(each)) for each in data]
    back = [
        Move(memory, move.offset, checksum=move.checksum, private=True)
        for move, (_, memory) in zip(out, found, strict=True)
    ]
    faults = await transport.read(shared_peer.segment, back, soon())
    assert [index for index, fault in enumerate(faults) if fault] == [123]
    assert faults[123] is Fault.CORRUPT
    assert [each for index, (each, _) in enumerate(found) if index != 123] == data[:123] + data[124:]


async def test_callers_at_once(transport: Any, shared_peer: Peer) -> None:
    async def one(number: int) -> bool:
        data, offset = os.urandom(MIB + number), 2 * MIB * number
        await transport.write(shared_peer.segment, [Move(source(data), offset)], soon())
        found, memory = fresh_bytes(len(data))
        await transport.read(shared_peer.segment, [Move(memory, offset, private=True)], soon())
        return found == data

    assert all(await asyncio.gather(*(one(number) for number in range(16))))


async def test_nothing_reaches_beyond_the_segment(transport: Any, shared_peer: Peer) -> None:
    data = bytes(100)
    for offset in (CAPACITY_BYTES - 99, CAPACITY_BYTES, -1, 2**63):
        move = Move(source(data), offset)
        assert await transport.write(shared_peer.segment, [move], soon()) == [Fault.UNREACHABLE]
        _, memory = fresh_bytes(100)
        assert await transport.read(shared_peer.segment, [Move(memory, offset)], soon()) == [Fault.UNREACHABLE]
    assert shared_peer.peek(-HEADER_BYTES, 8) == b"LARDPOOL"


async def test_nothing_is_written_or_accepted_after_the_end(transport: Any, shared_peer: Peer) -> None:
    shared_peer.poke(0, b"before")
    ended = time.monotonic()
    assert await transport.write(shared_peer.segment, [Move(source(b"after!"), 0)], ended) == [Fault.LATE]
    assert shared_peer.peek(0, 6) == b"before"
    _, memory = fresh_bytes(6)
    assert await transport.read(shared_peer.segment, [Move(memory, 0, private=True)], ended) == [Fault.LATE]


async def test_a_large_copy_leaves_the_loop_free(transport: Any, shared_peer: Peer) -> None:
    data = os.urandom(60 * MIB)
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - begun)

    await transport.write(shared_peer.segment, [Move(source(b"x"), 0)], soon())  # the mapping, the engine
    watcher = asyncio.create_task(watch())
    moves = [Move(source(data).cut(MIB * part, MIB), MIB * part, hashing=True) for part in range(60)]
    assert await transport.write(shared_peer.segment, moves, soon()) == [None] * 60
    watcher.cancel()
    assert longest < 0.25  # a machine under load; on the loop itself it would be the whole copy and more


# ---- shared memory alone -------------------------------------------------------------------------


async def test_shm_proves_the_file_by_its_token(peer: Peer) -> None:
    copiers = Copiers()
    transport = SharedMemory(copiers)
    segment = peer.segment
    strangers = (
        dataclasses.replace(segment, shm_token=bytes(16)),
        dataclasses.replace(segment, shm_token=b"1" * 16, shm_path="/nowhere/at.all"),
        dataclasses.replace(segment, shm_token=b"2" * 16, shm_path=""),
        dataclasses.replace(segment, shm_token=b"3" * 16, shm_path=__file__),
    )
    assert [transport.reach(each) for each in strangers] == [Reach.NONE] * 4
    larger = dataclasses.replace(segment, capacity_bytes=CAPACITY_BYTES + 1)
    assert transport.reach(larger) is Reach.NONE
    copiers.close()


async def test_shm_outlives_the_node_and_lets_go_of_its_file(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    copiers = Copiers()
    transport = SharedMemory(copiers)
    peer.poke(0, b"left behind")
    assert transport.reach(peer.segment) is Reach.GOOD
    peer.kill()
    found, memory = fresh_bytes(11)
    assert await transport.read(peer.segment, [Move(memory, 0)], soon()) == [None]
    assert found == b"left behind"
    peer.path.unlink()
    monkeypatch.setattr("larder.transports.shm.RECHECK_S", 0.0)
    transport._sweep_at = 0.0
    assert transport.reach(peer.segment) is Reach.NONE
    await until_true(
        lambda: str(peer.path) not in Path("/proc/self/maps").read_text()
    )  # its page tables are made first
    copiers.close()


# ---- the engine alone ----------------------------------------------------------------------------


async def test_a_killed_peer_fails_at_once(engine: EngineTransport, peer: Peer) -> None:
    data = os.urandom(MIB)
    assert await engine.write(peer.segment, [Move(source(data), 0)], soon()) == [None]
    peer.kill()
    for _ in range(3):
        begun = time.monotonic()
        _, memory = fresh_bytes(MIB)
        assert await engine.read(peer.segment, [Move(memory, 0, private=True)], soon()) == [Fault.UNREACHABLE]
        assert time.monotonic() - begun < 1.0
    assert engine.reach(peer.segment) is Reach.DOUBTFUL


async def test_a_frozen_peer_stalls_in_bounded_time_without_burning_a_core(engine: EngineTransport, peer: Peer) -> None:
    data = os.urandom(MIB)
    assert await engine.write(peer.segment, [Move(source(data), 0)], soon()) == [None]
    peer.freeze()
    begun, cpu = time.monotonic(), time.process_time()
    moves = [Move(fresh_bytes(MIB)[1], 0, private=True) for _ in range(8)]
    assert await engine.read(peer.segment, moves, soon()) == [Fault.STALLED] * 8
    waited, burnt = time.monotonic() - begun, time.process_time() - cpu
    assert 0.9 < waited < 2.5
    assert burnt < 0.25 * waited
    begun = time.monotonic()
    assert await engine.read(peer.segment, moves[:1], soon()) == [Fault.UNREACHABLE]  # it still owes answers
    assert time.monotonic() - begun < 0.5
    assert engine.reach(peer.segment) is Reach.DOUBTFUL
    peer.thaw()
    await until_true(lambda: engine.reach(peer.segment) is Reach.GOOD)
    found, memory = fresh_bytes(MIB)
    back = Move(memory, 0, checksum=digest(data), private=True)
    assert await engine.read(peer.segment, [back], soon()) == [None]
    assert found == data


async def test_a_peer_frozen_before_the_first_word_is_given_up_too(engine: EngineTransport, peer: Peer) -> None:
    peer.freeze()
    begun = time.monotonic()
    assert await engine.write(peer.segment, [Move(source(b"data"), 0)], soon()) == [Fault.UNREACHABLE]
    assert time.monotonic() - begun < PROBE_S + 1.0
    begun = time.monotonic()
    assert await engine.write(peer.segment, [Move(source(b"data"), 0)], soon()) == [Fault.UNREACHABLE]
    assert time.monotonic() - begun < 0.2
    peer.thaw()
    await until_true(lambda: engine.reach(peer.segment) is Reach.GOOD)
    assert await engine.write(peer.segment, [Move(source(b"data"), 0)], soon()) == [None]


async def test_a_frozen_peer_does_not_hold_up_another(engine: EngineTransport, peer: Peer, shared_peer: Peer) -> None:
    for each in (peer, shared_peer):
        assert await engine.write(each.segment, [Move(source(b"data"), 0)], soon()) == [None]
    peer.freeze()
    moves = [Move(fresh_bytes(MIB)[1], 0, private=True) for _ in range(100)]
    stuck = asyncio.create_task(engine.read(peer.segment, moves, soon()))
    await asyncio.sleep(0.1)
    for _ in range(20):
        _, memory = fresh_bytes(MIB)
        begun = time.monotonic()
        assert await engine.read(shared_peer.segment, [Move(memory, 0, private=True)], soon()) == [None]
        assert time.monotonic() - begun < 0.5
    assert not stuck.done()
    peer.thaw()
    assert set(await stuck) <= {None, Fault.STALLED}


async def test_the_deadline_counts_where_it_comes_first(engine: EngineTransport, peer: Peer) -> None:
    assert await engine.write(peer.segment, [Move(source(b"data"), 0)], soon()) == [None]
    peer.freeze()
    begun = time.monotonic()
    _, memory = fresh_bytes(MIB)
    assert await engine.read(peer.segment, [Move(memory, 0, private=True)], soon(0.2)) == [Fault.LATE]
    assert time.monotonic() - begun < 0.4


async def test_memory_of_a_stalled_transfer_is_kept_until_the_engine_answered(
    engine: EngineTransport, peer: Peer
) -> None:
    peer.poke(0, b"\x07" * MIB)
    assert await engine.write(peer.segment, [Move(source(b"x"), 2 * MIB)], soon()) == [None]
    peer.freeze()
    array = np.zeros(MIB, dtype=np.uint8)
    gone = weakref.ref(array)
    faults = await engine.read(peer.segment, [Move(destination(array), 0, private=True)], soon())
    assert faults == [Fault.STALLED]
    del array
    gc.collect()
    assert gone() is not None
    peer.thaw()
    await until_true(lambda: gc.collect() >= 0 and gone() is None)


async def test_nothing_lands_in_the_callers_memory_after_the_answer(engine: EngineTransport, peer: Peer) -> None:
    peer.poke(0, b"\x07" * 4 * MIB)
    assert await engine.write(peer.segment, [Move(source(b"x"), 5 * MIB)], soon()) == [None]
    peer.freeze()
    mine = bytearray(4 * MIB)
    faults = await engine.read(peer.segment, [Move(destination(mine), 0)], soon())
    assert faults == [Fault.STALLED]
    peer.thaw()
    await until_true(lambda: engine.reach(peer.segment) is Reach.GOOD)  # by now the transfer has landed somewhere
    assert mine == bytes(4 * MIB)


async def test_registered_memory_is_waited_for(engine: EngineTransport, peer: Peer) -> None:
    peer.poke(0, b"\x07" * MIB)
    assert await engine.write(peer.segment, [Move(source(b"x"), 2 * MIB)], soon()) == [None]
    mine = bytearray(4 * MIB)
    engine.register(destination(mine))
    peer.freeze()
    target = destination(memoryview(mine)[MIB : 2 * MIB])
    reading = asyncio.create_task(engine.read(peer.segment, [Move(target, 0)], soon(0.5)))
    await asyncio.sleep(1.5)
    assert not reading.done()
    reading.cancel()
    await asyncio.sleep(0.3)
    assert not reading.done()
    peer.thaw()
    with pytest.raises(asyncio.CancelledError):
        await reading
    snapshot = bytes(mine)
    await asyncio.sleep(0.3)
    assert mine == snapshot


async def test_a_cancelled_read_of_private_memory_returns_at_once(engine: EngineTransport, peer: Peer) -> None:
    assert await engine.write(peer.segment, [Move(source(b"x"), 0)], soon()) == [None]
    peer.freeze()
    _, memory = fresh_bytes(MIB)
    reading = asyncio.create_task(engine.read(peer.segment, [Move(memory, 0, private=True)], soon()))
    await asyncio.sleep(0.1)
    begun = time.monotonic()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert time.monotonic() - begun < 0.3


async def test_another_node_under_an_old_name_is_found(engine: EngineTransport, peer: Peer, shared_peer: Peer) -> None:
    async with _forwarder(peer.segment.engine_endpoint) as name:
        first = dataclasses.replace(peer.segment, engine_endpoint=name)
        assert await engine.write(first, [Move(source(b"first"), 0)], soon()) == [None]
        assert peer.peek(0, 5) == b"first"
    peer.kill()
    async with _forwarder(shared_peer.segment.engine_endpoint, name) as name:
        second = dataclasses.replace(shared_peer.segment, engine_endpoint=name)
        assert await engine.write(second, [Move(source(b"second"), 0)], soon()) == [None]
    assert shared_peer.peek(0, 6) == b"second"


@asynccontextmanager
async def _forwarder(target: str, name: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """A name of our own for an engine: a port (a taken one comes back only by luck) that leads to it."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = target.split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    host, port = name.split(":")
    server = await asyncio.start_server(serve, host, int(port))
    async with server:
        yield f"{host}:{server.sockets[0].getsockname()[1]}"


async def test_closing_ends_what_is_under_way(peer: Peer) -> None:
    copiers = Copiers()
    engine = EngineTransport(copiers)
    assert await engine.write(peer.segment, [Move(source(b"x"), 0)], soon()) == [None]
    peer.freeze()
    _, memory = fresh_bytes(MIB)
    reading = asyncio.create_task(engine.read(peer.segment, [Move(memory, 0, private=True)], soon()))
    await asyncio.sleep(0.1)
    await engine.close()
    assert await asyncio.wait_for(reading, 0.5) == [Fault.LATE]
    copiers.close()
