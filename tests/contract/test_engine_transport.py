"""What only the transfer engine can meet: peers that are killed, frozen, or come back as somebody else."""

import asyncio
import dataclasses
import gc
import os
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from larder.memory import destination, fresh_bytes, source
from larder.places import Fault
from larder.transports import Move, Reach
from larder.transports.copiers import Copiers
from larder.transports.engine import PROBE_S, EngineTransport

from tests.contract.peers import MIB, Peer, digest, soon, until_true


@pytest.fixture
async def engine() -> AsyncIterator[EngineTransport]:
    copiers = Copiers()
    transport = EngineTransport(copiers)
    yield transport
    await transport.close()
    copiers.close()


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
    assert engine.reach(peer.segment) is Reach.DOUBTFUL
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
    assert engine.reach(peer.segment) is Reach.DOUBTFUL  # as long as it owes the answer
    peer.thaw()
    await until_true(lambda: engine.reach(peer.segment) is Reach.GOOD)


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
