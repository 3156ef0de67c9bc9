"""The way of a get and of a put with a scripted master and transports: which copy, what next, what is told."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from larder.arguments import check_length
from larder.background import Background
from larder.errors import DataLost, DeadlineExceeded, LarderError, WriteFailed
from larder.gets import Getter, Landing
from larder.memory import destination, fresh_bytes, source, view_at
from larder.mover import Mover
from larder.places import Copy, Fault, Segment, Slice
from larder.puts import ATTEMPTS, PutResult, Putter
from larder.rpc import BadCopy, Ended, Found, Started
from larder.stats import Stats
from larder.transports import Move, Reach
from larder.v1.types_pb2 import Result

DATA = b"0123456789"


def segment(name: str) -> Segment:
    return Segment(ord(name), name, 1000, "", name.encode() * 16, 0, "", 0, "tcp")


A, B, C = segment("a"), segment("b"), segment("c")


class Master:
    """Answers as scripted and keeps what it was told."""

    def __init__(self, slices: list[Slice], *, lease_s: float = 10.0) -> None:
        self.slices = slices
        self.lease_s = lease_s
        self.lookups = 0
        self.reported: list[BadCopy] = []
        self.ended: list[tuple[Any, ...]] = []
        self.aborted: list[int] = []

    async def lookup(self, keys: Sequence[bytes], *, deadline: float) -> Found:
        self.lookups += 1
        until = time.monotonic() + self.lease_s
        return Found([sum(part.length for part in self.slices)] * len(keys), [self.slices] * len(keys), until)

    async def report(self, bad: Sequence[BadCopy], *, deadline: float) -> int:
        self.reported += bad
        return len(bad)

    async def put_start(self, keys: Sequence[bytes], sizes: Sequence[int], **_: Any) -> Started:
        ids = list(range(1, len(keys) + 1))
        return Started([Result.RESULT_OK] * len(keys), ids, [self.slices] * len(keys), time.monotonic() + self.lease_s)

    async def put_end(self, write_ids: Any, checksums: Any, failed: Any, *, deadline: float) -> Ended:
        self.ended.append((list(write_ids), checksums, failed))
        return Ended([Result.RESULT_OK] * len(write_ids), [1] * len(write_ids))

    async def put_abort(self, write_ids: Sequence[int], *, deadline: float) -> None:
        self.aborted += write_ids


Behaviour = Callable[[Segment, Move], Fault | None]


class ScriptedTransport:
    """Does to each move what the test says."""

    def __init__(self, name: str, reaches: dict[str, Reach], behave: Behaviour) -> None:
        self.name = name
        self.reaches = reaches
        self.behave = behave
        self.asked: list[str] = []

    def reach(self, segment: Segment) -> Reach:
        return self.reaches.get(segment.node_id, Reach.NONE)

    async def read(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        await asyncio.sleep(0)
        self.asked += [segment.node_id] * len(moves)
        return [self.behave(segment, move) for move in moves]

    write = read

    async def close(self) -> None:
        pass


class World:
    def __init__(self, master: Master, *transports: ScriptedTransport, verify: bool = True) -> None:
        self.stats = Stats()
        self.mover = Mover([], self.stats)
        self.mover._transports = list(transports)
        self.background = Background(master, self.stats)  # type: ignore[arg-type]
        self.getter = Getter(master, self.mover, self.background, verify=verify)  # type: ignore[arg-type]
        self.putter = Putter(master, self.mover, self.background, verify=verify)  # type: ignore[arg-type]

    async def get(self, *, private: bool = True, seconds: float = 5.0) -> Any:
        self.landings: list[Landing] = []

        def prepare(index: int, size: int) -> Landing:
            data, memory = fresh_bytes(size)
            self.landings.append(Landing(memory, data, private=private))
            return self.landings[-1]

        (answer,) = await self.getter.get([b"key"], prepare, time.monotonic() + seconds)
        await self.background.close()
        return answer

    async def put(self, data: bytes = DATA) -> PutResult | LarderError:
        deadline = time.monotonic() + 5
        (answer,) = await self.putter.put(
            [b"key"], [source(data)], copies=2, depths=(), started=None, deadline=deadline
        )
        await self.background.close()
        return answer


def fill(segment: Segment, move: Move) -> None:
    start = 0
    for address, length in move.memory.pieces:
        view_at(address, length, writable=True)[:] = DATA[start : start + length]
        start += length


def only_from(*good: str, fault: Fault = Fault.UNREACHABLE) -> Behaviour:
    def behave(segment: Segment, move: Move) -> Fault | None:
        return fill(segment, move) if segment.node_id in good else fault

    return behave


def copies(*segments: Segment) -> list[Copy]:
    return [Copy(each, 100) for each in segments]


def everywhere(*names: str) -> dict[str, Reach]:
    return dict.fromkeys(names, Reach.GOOD)


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


async def test_bad_copies_are_reported_with_their_places() -> None:
    engine = ScriptedTransport("engine", everywhere("a", "b"), only_from("b", fault=Fault.CORRUPT))
    master = Master([Slice(4, 1, copies(B)), Slice(6, 1, copies(A, B))])
    world = World(master, engine)
    for _ in range(8):
        assert await world.get() == b"0123012345"
    assert set(master.reported) == {BadCopy(b"key", 1, A.id, 100, Fault.CORRUPT)}


@pytest.mark.parametrize(("fault", "said"), [(Fault.CORRUPT, "checksum"), (Fault.UNREACHABLE, "cannot be read")])
async def test_all_copies_bad_is_lost(fault: Fault, said: str) -> None:
    engine = ScriptedTransport("engine", everywhere("a", "b"), only_from(fault=fault))
    answer = await World(Master([Slice(10, 1, copies(A, B))]), engine).get()
    assert isinstance(answer, DataLost)
    assert said in str(answer)
    assert (answer.key, answer.node in ("a", "b")) == (b"key", True)
    assert sorted(engine.asked) == ["a", "b"]


async def test_no_way_to_any_copy_is_lost_too() -> None:
    answer = await World(Master([Slice(10, 1, copies(A))]), ScriptedTransport("engine", {}, only_from())).get()
    assert isinstance(answer, DataLost)


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


async def test_a_stall_of_the_last_copy_is_lost() -> None:
    engine = ScriptedTransport("engine", everywhere("a"), only_from(fault=Fault.STALLED))
    master = Master([Slice(10, 1, copies(A))])
    assert isinstance(await World(master, engine).get(), DataLost)
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
        check_length(memory, size, b"key")
        raise AssertionError

    (answer,) = await world.getter.get([b"key"], prepare, time.monotonic() + 5)
    assert "10 are wanted" in str(answer)
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
