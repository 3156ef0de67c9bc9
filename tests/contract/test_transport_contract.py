"""One suite over both transports, with a real engine in a process of its own, which is also killed and frozen."""

import asyncio
import dataclasses
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from larder.memory import destination, fresh_bytes, source
from larder.places import Fault
from larder.pool_file import HEADER_BYTES
from larder.transports import Move, Reach
from larder.transports.copiers import Copiers
from larder.transports.engine import EngineTransport
from larder.transports.shm import SharedMemory

from tests.contract.peers import CAPACITY_BYTES, MIB, Peer, digest, fresh, soon, until_true


@pytest.fixture(params=["shm", "engine"])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    copiers = Copiers()
    transport = SharedMemory(copiers) if request.param == "shm" else EngineTransport(copiers)
    yield transport
    await transport.close()
    copiers.close()


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

LETS_GO_S = 4.0


def is_mapped(peer: Peer) -> bool:
    return str(peer.path) in Path("/proc/self/maps").read_text()


def is_open(peer: Peer) -> bool:
    files = (Path("/proc/self/fd") / each for each in os.listdir("/proc/self/fd"))
    return any(file.exists() and file.samefile(peer.path) for file in files)


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


async def test_shm_outlives_the_node_and_lets_go_of_its_file(peer: Peer) -> None:
    copiers = Copiers()
    transport = SharedMemory(copiers)
    peer.poke(0, b"left behind")
    assert transport.reach(peer.segment) is Reach.GOOD
    peer.kill()
    found, memory = fresh_bytes(11)
    assert await transport.read(peer.segment, [Move(memory, 0)], soon()) == [None]
    assert found == b"left behind"
    view = transport.view(peer.segment, 0, 11)
    peer.path.unlink()
    await until_true(lambda: transport.view(peer.segment, 0, 11) is None, LETS_GO_S)
    assert view == b"left behind", "who looks at it keeps it"
    assert is_mapped(peer)
    del view
    assert not is_mapped(peer)
    copiers.close()


async def test_shm_lets_go_of_a_file_that_is_gone_without_being_asked_for_anything(peer: Peer) -> None:
    copiers = Copiers()
    transport = SharedMemory(copiers)
    assert transport.reach(peer.segment) is Reach.GOOD
    peer.path.unlink()
    time.sleep(LETS_GO_S)  # noqa: ASYNC251  (not even its loop turns)
    assert not is_mapped(peer)
    copiers.close()


async def test_shm_that_is_dropped_lets_go_at_once_and_leaves_no_thread(peer: Peer) -> None:
    copiers = Copiers()
    for _ in range(50):
        transport = SharedMemory(copiers)
        assert transport.reach(peer.segment) is Reach.GOOD
    assert sum(thread.name == "larder-mappings" for thread in threading.enumerate()) == 1
    del transport
    await until_true(lambda: not is_mapped(peer), LETS_GO_S)  # their page tables were being made
    own = {"larder-mappings", "larder-populate"}
    await until_true(lambda: own.isdisjoint(thread.name for thread in threading.enumerate()), LETS_GO_S)
    copiers.close()


def test_a_forked_child_holds_nothing_of_a_pool(peer: Peer) -> None:
    copiers = Copiers()
    transport = SharedMemory(copiers)
    assert transport.reach(peer.segment) is Reach.GOOD
    begun, over = threading.Event(), threading.Event()

    def copy() -> object:
        mapping = transport._mappings.get(peer.segment)
        begun.set()
        over.wait(10)
        return mapping

    copying = copiers.submit(copy)
    begun.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(is_mapped(peer) or is_open(peer))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_mapped(peer)
    assert is_open(peer)
    over.set()
    assert copying.result(10) is transport._mappings.get(peer.segment)
    copiers.close()


def test_a_view_outlives_a_fork(peer: Peer) -> None:
    copiers = Copiers()
    transport = SharedMemory(copiers)
    view = transport.view(peer.segment, 0, 100)
    assert view is not None
    child = os.fork()
    if child == 0:
        os._exit(view != bytes(100))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    copiers.close()
