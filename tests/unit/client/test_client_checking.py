"""How `larder verify` reads again what it did not reach, and what it counts in the end: with answers that are given."""

import time
from collections.abc import Sequence
from typing import Any

import pytest
from larder.cli.checking import TRIES, Checker, Read
from larder.facts import Facts, Known
from larder.keys import Page
from larder.mover import Mover
from larder.places import Copy, Fault, Segment, Slice
from larder.stats import Stats
from larder.transports import Move, Reach

GOOD, CORRUPT, UNREACHABLE, LATE = None, Fault.CORRUPT, Fault.UNREACHABLE, Fault.LATE
NODES = ("one", "other")
SEGMENTS = [
    Segment(number, node, 1000, "", node.encode(), 0, "", 0, "tcp", "host", "") for number, node in enumerate(NODES)
]


class Answers:
    """A transport whose reads of a node end as it was told, the last word again and again."""

    name = "engine"

    def __init__(self, script: dict[str, list[Fault | None]]) -> None:
        self.script = script
        self.asked: list[str] = []

    def reach(self, segment: Segment) -> Reach:
        return Reach.GOOD

    async def read(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        self.asked.append(segment.node_id)
        said = self.script[segment.node_id]
        return [said.pop(0) if len(said) > 1 else said[0]] * len(moves)

    async def close(self) -> None:
        pass


class Master:
    """Has one object, a copy of it on each node, until `gone` leases were given."""

    def __init__(self, gone: int, dropped: int) -> None:
        self.gone, self.dropped = gone, dropped
        self.leases: list[int] = []
        self.released: list[int] = []
        self.reported: list[tuple[int, Fault]] = []

    async def list(self, page: Page, **_: Any) -> list[tuple[bytes, int, int]]:
        page.more = False
        return [(b"key", 8, 2)]

    async def stat(self, keys: Sequence[bytes], *, lease: bool = False, deadline: float) -> Known:
        self.leases.append(len(self.leases) + 1)
        part = Slice(8, 1, [Copy(segment, 0) for segment in SEGMENTS])
        facts = Facts(frozenset(), b"key", 8, 7, 2, "none", 0, 0, 0, [part])
        is_there = len(self.leases) <= self.gone
        return Known([facts if is_there else None], time.monotonic() + 60, self.leases[-1])

    async def release(self, leases: Sequence[int], **_: Any) -> None:
        self.released += leases

    async def report(self, bad: Sequence[Any], **_: Any) -> int:
        self.reported += [(each.segment_id, each.fault) for each in bad]
        return self.dropped


async def check(
    one: list[Fault | None], *, gone: int = 100, dropped: int = 1
) -> tuple[Checker, Answers, Master, list[tuple[str, Fault]]]:
    answers: Any = Answers({"one": one, "other": [GOOD]})
    master: Any = Master(gone, dropped)
    mover = Mover([], Stats())
    mover._transports = [answers]
    named: list[tuple[str, Fault]] = []

    def found(read: Read, fault: Fault) -> None:
        named.append((read.copy.segment.node_id, fault))

    checker = Checker(master, mover, rate=None, found=found, moved=lambda size: None)
    await checker.run(b"")
    await mover.close()
    assert master.released == master.leases
    return checker, answers, master, named


def counted(checker: Checker) -> dict[str, int]:
    tally = checker.tally
    return {name: value for name, value in vars(tally).items() if isinstance(value, int) and value}


ALL_GOOD = {"objects": 1, "copies": 2, "read_bytes": 16}


@pytest.mark.parametrize("passing", [UNREACHABLE, LATE, Fault.STALLED])
async def test_a_copy_that_is_not_reached_at_once_is_read_again_and_no_other(passing: Fault) -> None:
    checker, answers, master, named = await check([passing] * (TRIES - 1) + [GOOD])
    assert counted(checker) == ALL_GOOD
    assert (answers.asked.count("one"), answers.asked.count("other")) == (TRIES, 1)
    assert (master.reported, named) == ([], [])


async def test_a_copy_that_is_never_reached_is_tried_so_often_and_counted_once() -> None:
    checker, answers, master, named = await check([UNREACHABLE])
    assert counted(checker) == {"objects": 1, "copies": 1, "read_bytes": 8, "unreachable": 1}
    assert answers.asked.count("one") == TRIES
    assert master.reported == [(0, UNREACHABLE)]
    assert named == [("one", UNREACHABLE)]
    assert not checker.tally.is_good


async def test_a_copy_that_is_bad_at_the_second_look_is_bad() -> None:
    checker, _, master, named = await check([LATE, CORRUPT])
    assert counted(checker) == {"objects": 1, "copies": 1, "read_bytes": 8, "corrupt": 1}
    assert (master.reported, named) == ([(0, CORRUPT)], [("one", CORRUPT)])


async def test_what_went_before_the_second_look_is_no_fault() -> None:
    checker, *_, named = await check([UNREACHABLE], gone=1)
    assert counted(checker) == {"copies": 1, "read_bytes": 8, "vanished": 1}
    assert (checker.tally.is_good, named) == (True, [])


async def test_bad_bytes_where_the_master_holds_nothing_any_more_are_no_fault() -> None:
    checker, *_, named = await check([CORRUPT], dropped=0)
    assert counted(checker) == {"objects": 1, "copies": 1, "read_bytes": 8}
    assert (checker.tally.is_good, named) == (True, [])
