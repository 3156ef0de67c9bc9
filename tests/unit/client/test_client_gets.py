"""The way of a get and of a put with a scripted master and transports: which copy, what next, what is told."""

import asyncio
import re
import time

import pytest
from larder.arguments import check_room
from larder.errors import DataLost, DeadlineExceeded, Unreachable, WriteFailed
from larder.memory import destination
from larder.places import Fault, Segment, Slice
from larder.puts import ATTEMPTS
from larder.reads import Landing
from larder.rpc import BadCopy
from larder.transports import Move, Reach
from larder.writes import PutResult

from tests.unit.client.scripted import (
    DATA,
    A,
    B,
    Behaviour,
    C,
    Master,
    ScriptedTransport,
    World,
    copies,
    everywhere,
    fill,
    only_from,
)  # fmt: skip


async def test_shared_memory_first_then_the_engine_then_the_doubtful() -> None:
    shm = ScriptedTransport("shm", everywhere("c"), only_from())
    engine = ScriptedTransport("engine", {"a": Reach.DOUBTFUL, "b": Reach.GOOD, "c": Reach.GOOD}, only_from("a"))
    world = World(Master([Slice(10, 1, copies(A, B, C))]), shm, engine)
    assert await world.get() == DATA
    assert (shm.asked, engine.asked) == (["c"], ["b", "a"])
    assert world.stats.as_dict()["failovers"] == 2


async def test_the_load_is_spread_over_equal_copies() -> None:
    engine = ScriptedTransport("engine", everywhere("a", "b"), only_from("a", "b"))
    master = Master([Slice(1, 1, copies(A, B)) for _ in range(10)])
    assert await World(master, engine).get() == b"0" * 10
    assert sorted(engine.asked) == ["a"] * 5 + ["b"] * 5


async def test_many_readers_of_one_key_share_its_nodes() -> None:
    engine = ScriptedTransport("engine", everywhere("a", "b"), only_from("a", "b"))
    world = World(Master([Slice(10, 1, copies(A, B))]), engine)
    assert await asyncio.gather(*[world.get() for _ in range(10)]) == [DATA] * 10
    assert sorted(engine.asked) == ["a"] * 5 + ["b"] * 5


async def test_bad_copies_are_reported_with_their_places() -> None:
    engine = ScriptedTransport("engine", everywhere("a", "b"), only_from("b", fault=Fault.CORRUPT))
    master = Master([Slice(4, 1, copies(B)), Slice(6, 1, copies(A, B))])
    world = World(master, engine)
    for _ in range(8):
        assert await world.get() == b"0123012345"
    assert set(master.reported) == {BadCopy(b"key", 1, A.id, 100, Fault.CORRUPT)}


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (Fault.CORRUPT, DataLost, "checksum"),
        (Fault.UNREACHABLE, Unreachable, "no copy of slice 0 can be read from this host"),
    ],
)
async def test_all_copies_corrupt_is_lost_and_out_of_reach_is_not(fault: Fault, kind: type, said: str) -> None:
    engine = ScriptedTransport("engine", everywhere("a", "b"), only_from(fault=fault))
    answer = await World(Master([Slice(10, 1, copies(A, B))]), engine).get()
    assert type(answer) is kind
    assert re.search(said, str(answer))
    assert (answer.key, answer.node in ("a", "b")) == (b"key", True)
    assert sorted(engine.asked) == ["a", "b"]


async def test_what_had_no_good_copy_is_looked_up_once_more() -> None:
    """It was put again meanwhile, or repaired. Where there is nothing new, nothing is read again."""
    engine = ScriptedTransport("engine", everywhere("a", "b"), only_from("b"))
    master = Master([Slice(4, 1, copies(B)), Slice(6, 1, copies(A))])
    world = World(master, engine)
    lookup = master.lookup

    async def lookup_and_repair(*args: object, **kwargs: object) -> object:
        found = await lookup(*args, **kwargs)  # type: ignore[arg-type]
        master.slices = [master.slices[0], Slice(6, 1, copies(A, B))]
        return found

    master.lookup = lookup_and_repair  # type: ignore[method-assign,assignment]
    assert await world.get() == b"0123012345"
    assert master.lookups == 2


@pytest.mark.parametrize("later", [[], [Slice(4, 1, copies(B, C)), Slice(6, 1, copies(A))]])
async def test_what_has_no_other_copies_later_is_not_read_again(later: list[Slice]) -> None:
    engine = ScriptedTransport("engine", everywhere("a", "b", "c"), only_from("b", "c"))
    master = Master([Slice(4, 1, copies(B)), Slice(6, 1, copies(A))])
    world = World(master, engine)
    lookup = master.lookup

    async def lookup_and_change(*args: object, **kwargs: object) -> object:
        found = await lookup(*args, **kwargs)  # type: ignore[arg-type]
        master.slices = later
        return found

    master.lookup = lookup_and_change  # type: ignore[method-assign,assignment]
    assert isinstance(await world.get(), Unreachable)
    assert sorted(engine.asked) == ["a", "b"]
    assert master.lookups == 2


async def test_one_copy_corrupt_and_one_out_of_reach_is_not_lost() -> None:
    engine = ScriptedTransport(
        "engine", everywhere("a", "b"), lambda s, _: Fault.CORRUPT if s.node_id == "a" else Fault.UNREACHABLE
    )
    answer = await World(Master([Slice(10, 1, copies(A, B))]), engine).get()
    assert isinstance(answer, Unreachable)
    assert "node b" in str(answer)
    assert "node a:" not in str(answer), "it was reached"


async def test_no_way_to_any_copy_says_so() -> None:
    answer = await World(Master([Slice(10, 1, copies(A))]), ScriptedTransport("engine", {}, only_from())).get()
    assert isinstance(answer, Unreachable)


async def test_after_a_stall_the_object_is_read_into_other_memory() -> None:
    """The transfer that was given up may still land in the first."""
    engine = ScriptedTransport("engine", everywhere("b"), only_from("b", fault=Fault.STALLED))
    engine.reaches = {"a": Reach.GOOD, "b": Reach.DOUBTFUL}  # so a comes first
    world = World(Master([Slice(4, 1, copies(B)), Slice(6, 1, copies(A, B))]), engine)
    assert await world.get() == b"0123012345"
    assert len(world.landings) == 2
    assert engine.asked.count("a") == 1


async def test_after_a_stall_the_callers_memory_is_used_again() -> None:
    engine = ScriptedTransport("engine", {"a": Reach.GOOD, "b": Reach.DOUBTFUL}, only_from("b", fault=Fault.STALLED))
    world = World(Master([Slice(10, 1, copies(A, B))]), engine)
    assert await world.get(private=False) == DATA
    assert len(world.landings) == 1


async def test_a_stall_of_the_last_copy_is_not_lost() -> None:
    engine = ScriptedTransport("engine", everywhere("a"), only_from(fault=Fault.STALLED))
    master = Master([Slice(10, 1, copies(A))])
    assert isinstance(await World(master, engine).get(), Unreachable)
    assert [bad.fault for bad in master.reported] == [Fault.STALLED]


async def test_what_came_late_is_looked_up_once_more() -> None:
    faults = [Fault.LATE]
    engine = ScriptedTransport("engine", everywhere("a"), lambda s, m: faults.pop() if faults else fill(s, m))
    master = Master([Slice(10, 1, copies(A))])
    world = World(master, engine)
    assert await world.get() == DATA
    assert (master.lookups, len(world.landings), master.reported) == (2, 2, [])


async def test_late_twice_is_an_error() -> None:
    engine = ScriptedTransport("engine", everywhere("a"), only_from(fault=Fault.LATE))
    master = Master([Slice(10, 1, copies(A))])
    answer = await World(master, engine).get()
    assert isinstance(answer, DeadlineExceeded)
    assert (master.lookups, master.reported) == (2, [])


async def test_a_wrong_length_reads_nothing() -> None:
    engine = ScriptedTransport("engine", everywhere("a"), only_from("a"))
    world = World(Master([Slice(10, 1, copies(A))]), engine)
    memory = destination(bytearray(9))

    def prepare(index: int, size: int) -> Landing:
        check_room(memory, size, b"key")
        raise AssertionError

    (answer,) = await world.getter.get([b"key"], prepare, time.monotonic() + 5)
    assert "the object has 10" in str(answer)
    assert engine.asked == []


async def test_without_verify_no_checksum_is_asked_for() -> None:
    seen: list[int] = []
    engine = ScriptedTransport("engine", everywhere("a"), lambda s, m: seen.append(m.checksum) or fill(s, m))
    for verify in (True, False):
        await World(Master([Slice(10, 77, copies(A))]), engine, verify=verify).get()
    assert seen == [77, 0]


# ---- puts ----------------------------------------------------------------------------------------


def hashed(*failing: str) -> Behaviour:
    def behave(segment: Segment, move: Move) -> Fault | None:
        if segment.node_id in failing:
            return Fault.UNREACHABLE
        if move.hashing:
            move.checksum = 5
        return None

    return behave


async def test_a_put_hashes_each_slice_once_and_says_which_copies_failed() -> None:
    engine = ScriptedTransport("engine", everywhere("a", "b"), hashed("b"))
    master = Master([Slice(4, 0, copies(A, B)), Slice(6, 0, copies(A, B))])
    assert await World(master, engine).put() == PutResult(copies=1, existed=False)
    assert master.ended == [([1], [[5, 5]], [(0, 0, 1), (0, 1, 1)])]


async def test_a_checksum_is_made_where_the_copy_that_should_have_failed() -> None:
    import xxhash

    engine = ScriptedTransport("engine", everywhere("a", "b"), hashed("a"))
    master = Master([Slice(4, 0, copies(A, B)), Slice(6, 0, copies(B, A))])
    await World(master, engine).put()
    assert master.ended == [([1], [[xxhash.xxh3_64_intdigest(b"0123"), 5]], [(0, 0, 0), (0, 1, 1)])]


async def test_a_copy_out_of_reach_is_a_failed_one() -> None:
    engine = ScriptedTransport("engine", everywhere("a"), hashed())
    master = Master([Slice(10, 0, copies(C, A))])
    await World(master, engine).put()
    assert master.ended == [([1], [[5]], [(0, 0, 0)])]


async def test_a_slice_without_any_copy_is_aborted() -> None:
    engine = ScriptedTransport("engine", everywhere("a", "b"), hashed("b"))
    master = Master([Slice(4, 0, copies(A)), Slice(6, 0, copies(B))])
    answer = await World(master, engine).put()
    assert isinstance(answer, WriteFailed)
    assert (answer.key, answer.node) == (b"key", "b")
    assert (master.ended, master.aborted) == ([], [1] * ATTEMPTS)


async def test_what_was_lost_is_put_again() -> None:
    engine = ScriptedTransport(
        "engine", everywhere("a"), lambda s, m: Fault.UNREACHABLE if len(engine.asked) < 2 else None
    )
    master = Master([Slice(10, 0, copies(A))])
    assert await World(master, engine).put() == PutResult(copies=1, existed=False)
    assert (len(master.ended), master.aborted) == (1, [1])


async def test_nothing_is_left_counted_as_under_way() -> None:
    engine = ScriptedTransport("engine", everywhere("a", "b"), only_from("b"))
    world = World(Master([Slice(10, 1, copies(A, B))]), engine)
    await world.get()
    await world.put()
    assert world.mover._under_way == {}


async def test_reports_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    master = Master([])
    world = World(master)
    bad = BadCopy(b"key", 0, 1, 2, Fault.CORRUPT)
    for _ in range(5000):
        world.background.report(bad)
    await world.background.close()
    assert len(master.reported) == 4096
