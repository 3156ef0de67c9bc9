"""Reads that hang: when a second one is begun, and that whoever is first and verified counts."""

import asyncio
import ctypes
import gc
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from larder.arguments import or_raise
from larder.errors import DataLost, Unreachable
from larder.hedging import BURST_BYTES, DELAY_S_MIN, SHARE, Hedging
from larder.memory import destination
from larder.places import Fault, Segment, Slice
from larder.reads import Landing
from larder.rpc import BadCopy
from larder.transports import Move, Reach

from tests.unit.client.scripted import (
    DATA,
    A,
    B,
    Behaviour,
    Master,
    ScriptedTransport,
    World,
    copies,
    everywhere,
    fill,
    only_from,
)  # fmt: skip

KIB, MIB = 2**10, 2**20

# ---- when ----------------------------------------------------------------------------------------


def learnt(*seconds: float, size_bytes: int = 256 * KIB) -> Hedging:
    hedging = Hedging()
    for each in seconds:
        hedging.note(size_bytes, each)
    return hedging


def test_what_is_not_known_may_take_what_a_slow_network_takes() -> None:
    few = learnt(*[0.01] * 19)
    assert few.delay_s(256 * KIB) == pytest.approx(0.1026, abs=1e-4)
    assert few.delay_s(64 * MIB) == pytest.approx(0.771, abs=1e-3)


def test_a_read_may_take_twice_what_nearly_all_take() -> None:
    assert learnt(*[0.01] * 95, *[0.04] * 5).delay_s(256 * KIB) == 0.08
    assert learnt(*[0.01] * 96, *[9.00] * 4).delay_s(256 * KIB) == 0.02


def test_the_delay_is_bounded_on_both_sides() -> None:
    assert learnt(*[1e-4] * 100).delay_s(256 * KIB) == DELAY_S_MIN
    assert learnt(*[5.0] * 100).delay_s(256 * KIB) == pytest.approx(0.1026, abs=1e-4)


def test_what_was_long_ago_is_forgotten() -> None:
    assert learnt(*[0.04] * 1000, *[0.01] * 128).delay_s(256 * KIB) == 0.02


def test_large_reads_tell_nothing_of_small_ones() -> None:
    hedging = learnt(*[0.3] * 100, size_bytes=64 * MIB)
    for _ in range(100):
        hedging.note(4 * KIB, 0.003)
    assert hedging.delay_s(64 * MIB) == 0.6
    assert hedging.delay_s(4 * KIB) == 0.006


def test_only_a_share_of_what_was_read_is_read_twice() -> None:
    hedging = Hedging()
    assert hedging.take(BURST_BYTES)
    assert not hedging.take(1)
    hedging.note(100 * MIB, 0.1)
    assert not hedging.take(int(SHARE * 100 * MIB) + 1)
    assert hedging.take(int(SHARE * 100 * MIB))
    assert not hedging.take(1)
    for _ in range(1000):
        hedging.note(100 * MIB, 0.1)
    assert not hedging.take(BURST_BYTES + 1)  # no more is saved up
    assert hedging.take(BURST_BYTES)


# ---- how -----------------------------------------------------------------------------------------


class HangingTransport(ScriptedTransport):
    """Reads from some nodes hang until the test opens their gate; what is given up there lands only then."""

    def __init__(self, reaches: dict[str, Reach], behave: Behaviour, *hanging: str, arrived: int = 0) -> None:
        super().__init__("engine", reaches, behave)
        self.gates = {node: asyncio.Event() for node in hanging}
        self.arrived = arrived  # moves of a read that hangs which are there at once
        self.abandoned: list[tuple[Segment, Sequence[Move]]] = []
        self.binding = False

    async def read(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        if segment.node_id not in self.gates:
            return await super().read(segment, moves, until)
        for move in moves[: self.arrived]:
            fill(segment, move)
            move.arrived = True
        try:
            await self.gates[segment.node_id].wait()
        except asyncio.CancelledError:
            self.abandoned.append((segment, moves))
            raise
        return await super().read(segment, moves, until)

    def can_abandon(self, move: Move) -> bool:
        return not self.binding


def ready(world: World) -> None:
    """Node a is read first, without chance, and hedged after 5 ms."""
    world.mover.plan(B, 100)
    for _ in range(20):
        world.getter._races.hedging.note(10, 0.001)


def counts(world: World) -> tuple[int, int, int]:
    stats = world.stats.as_dict()
    hedges, won, size_bytes = (stats.get(name, 0) for name in ("hedges", "hedges_won", "hedged_bytes"))
    return int(hedges), int(won), int(size_bytes)


@pytest.mark.parametrize("private", [True, False])
async def test_a_read_that_hangs_is_overtaken(private: bool) -> None:
    engine = HangingTransport(everywhere("a", "b"), only_from("a", "b"), "a")
    master = Master([Slice(10, 1, copies(A, B))])
    world = World(master, engine)
    ready(world)
    answer = await world.get(private=private)
    assert answer == DATA
    assert counts(world) == (1, 1, 10)
    assert master.reported == []
    (given_up,) = engine.abandoned
    assert given_up[0] is A
    assert len(world.landings) == (2 if private else 1)
    if private:  # the engine cannot cancel: it may still write there
        scribble(given_up[1])
        assert answer == DATA


def scribble(moves: Sequence[Move]) -> None:
    for move in moves:
        for address, length in move.memory.pieces:
            ctypes.memset(address, 0, length)


@pytest.mark.parametrize("private", [True, False])
async def test_only_what_is_lacking_is_read_again(private: bool) -> None:
    engine = HangingTransport(everywhere("a", "b"), only_from("a", "b"), "a", arrived=1)
    world = World(Master([Slice(4, 1, copies(A, B)), Slice(6, 1, copies(A, B))]), engine)
    ready(world)
    assert await world.get(private=private) == b"0123012345"
    assert counts(world) == (1, 1, 6)


@pytest.mark.parametrize("private", [True, False])
async def test_the_first_read_may_still_win(private: bool) -> None:
    engine = HangingTransport(everywhere("a", "b"), only_from("a", "b"), "a", "b")
    world = World(Master([Slice(10, 1, copies(A, B))]), engine)
    ready(world)
    asyncio.get_running_loop().call_later(0.1, engine.gates["a"].set)
    assert await world.get(private=private) == DATA
    assert counts(world) == (1, 0, 10)
    assert [segment for segment, _ in engine.abandoned] == [B]
    assert len(world.landings) == 1


async def test_a_hedge_that_finds_a_bad_copy_leaves_it_to_the_first() -> None:
    engine = HangingTransport(everywhere("a", "b"), only_from("a", fault=Fault.CORRUPT), "a")
    master = Master([Slice(10, 1, copies(A, B))])
    world = World(master, engine)
    ready(world)
    asyncio.get_running_loop().call_later(0.1, engine.gates["a"].set)
    assert await world.get() == DATA
    assert counts(world) == (1, 0, 10)
    assert master.reported == [BadCopy(b"key", 0, B.id, 100, Fault.CORRUPT)]


@pytest.mark.parametrize("fault", [Fault.UNREACHABLE, Fault.STALLED, Fault.CORRUPT])
@pytest.mark.parametrize("private", [True, False])
async def test_a_first_read_that_fails_at_last_is_told_and_not_missed(private: bool, fault: Fault) -> None:
    engine = HangingTransport(everywhere("a", "b"), only_from("b", fault=fault), "a", "b")
    master = Master([Slice(10, 1, copies(A, B))])
    world = World(master, engine)
    ready(world)
    loop = asyncio.get_running_loop()
    loop.call_later(0.1, engine.gates["a"].set)
    loop.call_later(0.15, engine.gates["b"].set)
    assert await world.get(private=private) == DATA
    assert counts(world) == (1, 1, 10)
    assert master.reported == [BadCopy(b"key", 0, A.id, 100, fault)]
    assert engine.asked == ["a", "b"]


async def test_all_copies_bad_is_said_with_a_hedge_too() -> None:
    engine = HangingTransport(everywhere("a", "b"), only_from(), "a")
    world = World(Master([Slice(10, 1, copies(A, B))]), engine)
    ready(world)
    asyncio.get_running_loop().call_later(0.1, engine.gates["a"].set)
    assert isinstance(await world.get(), Unreachable)
    assert sorted(engine.asked) == ["a", "b"]


def no_other_copy(world: World, engine: HangingTransport) -> None:
    world.getter._master.slices = [Slice(10, 1, copies(A))]  # type: ignore[attr-defined]


def the_other_in_doubt(world: World, engine: HangingTransport) -> None:
    engine.reaches["b"] = Reach.DOUBTFUL


def memory_that_the_engine_writes_itself(world: World, engine: HangingTransport) -> None:
    engine.binding = True


def no_budget(world: World, engine: HangingTransport) -> None:
    assert world.getter._races.hedging.take(BURST_BYTES)


@pytest.mark.parametrize("reason", [no_other_copy, the_other_in_doubt, memory_that_the_engine_writes_itself, no_budget])
async def test_no_hedge_where_it_is_of_no_use(reason: Callable[[World, HangingTransport], None]) -> None:
    engine = HangingTransport(everywhere("a", "b"), only_from("a"), "a")
    world = World(Master([Slice(10, 1, copies(A, B))]), engine)
    ready(world)
    reason(world, engine)
    asyncio.get_running_loop().call_later(0.1, engine.gates["a"].set)
    assert await world.get() == DATA
    assert counts(world) == (0, 0, 0)


async def test_no_hedge_where_one_slice_would_have_to_wait_anyway() -> None:
    engine = HangingTransport(everywhere("a", "b"), only_from("a"), "a")
    world = World(Master([Slice(4, 1, copies(A)), Slice(6, 1, copies(A, B))]), engine)
    ready(world)
    asyncio.get_running_loop().call_later(0.1, engine.gates["a"].set)
    assert await world.get() == b"0123012345"
    assert counts(world) == (0, 0, 0)


async def test_a_cancelled_get_ends_both_reads() -> None:
    engine = HangingTransport(everywhere("a", "b"), only_from("a", "b"), "a", "b")
    world = World(Master([Slice(10, 1, copies(A, B))]), engine)
    ready(world)
    getting = asyncio.create_task(world.get())
    await asyncio.sleep(0.1)
    assert counts(world) == (1, 0, 10)
    getting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getting
    assert [segment.node_id for segment, _ in engine.abandoned] == ["b", "a"]
    world.mover.plan(B, -100)
    assert world.mover._under_way == {}


@pytest.mark.parametrize("end", ["overtaken", "corrupt", "cancelled"])
async def test_a_hedged_read_keeps_nobodys_buffer(end: str) -> None:
    behave = only_from("a", "b", fault=Fault.CORRUPT) if end != "corrupt" else only_from(fault=Fault.CORRUPT)
    engine = HangingTransport(everywhere("a", "b"), behave, "a", *(["b"] if end == "cancelled" else []))
    world = World(Master([Slice(10, 1, copies(A, B))]), engine)
    ready(world)
    gc.collect()
    gc.disable()
    try:
        buffer = np.zeros(10, dtype=np.uint8)
        known = weakref.ref(buffer)
        call = asyncio.create_task(get_into(world, buffer))
        del buffer
        await asyncio.sleep(0.05)
        if end == "cancelled":
            call.cancel()
        for gate in engine.gates.values() if end == "corrupt" else ():
            gate.set()
        (answer,) = await asyncio.gather(call, return_exceptions=True)
        kinds = {"overtaken": int, "corrupt": DataLost, "cancelled": asyncio.CancelledError}
        assert isinstance(answer, kinds[end])
        await world.background.close()
        engine.abandoned.clear()
        del call, answer
        await asyncio.sleep(0)
        assert known() is None
        assert counts(world)[0] == 1
    finally:
        gc.enable()


async def get_into(world: World, buffer: "np.ndarray[Any, np.dtype[np.uint8]]") -> Any:
    def prepare(index: int, size: int) -> Landing:
        return Landing(destination(buffer), size, private=False)

    return or_raise((await world.getter.get([b"key"], prepare, time.monotonic() + 5)).pop())
