"""Judges a history: what must never have happened, whatever was done to the cluster. Pure; every rule is a function.

- wrong: a get whose bytes are not, all of them, one put's of that key; or a put's that had not begun yet.
- risen: what a remove had ended was seen again without a new put.
- lost: an acknowledged object was missed or not readable although a holder lived, nobody had removed it, and it cannot
  have been evicted.
- abnormal: before any fault, or RECOVERY_S after a heal, an operation failed, made fewer copies than asked, took long
  or did not end.

An operation without an end, or with an error, may have happened or not, until everything in flight has settled.
"""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from tests.chaos.history import ERROR, MISS, OK, History, Op, Outage

RECOVERY_S = 5.0  # of issue 3: back to normal so long after each heal
SLOW_S = 2.0
SETTLE_S = 20.0  # longer than a write lives: after that nothing of a failed operation is in flight
UNREADABLE = ("DataLost", "Unreachable")  # errors by which a get says that it knows of the object and cannot have it


@dataclass(frozen=True)
class Violation:
    rule: str
    what: str
    op: Op | None = None

    def __str__(self) -> str:
        return f"{self.rule}: {self.what}" + (f"\n    {self.op}" if self.op else "")


@dataclass
class _Key:
    """One key's operations, sorted for the questions that are asked."""

    puts: list[Op] = field(default_factory=list)  # by end
    removes: list[Op] = field(default_factory=list)  # by begin
    sights: list[Op] = field(default_factory=list)  # gets and seen


def check(history: History) -> list[Violation]:
    settled = _Settled(history)
    keys = _by_key(history.ops)
    found = [Violation("unexpected", line) for line in history.unexpected]
    evictions = _Evictions(history)
    for key in keys.values():
        found += _check_key(key, settled, _Excuses(history.outages, history.wholes), evictions)
    found += evictions.too_many()
    return found + list(_check_times(history))


def _by_key(ops: Sequence[Op]) -> dict[str, _Key]:
    keys: dict[str, _Key] = defaultdict(_Key)
    for op in ops:
        key = keys[op.key]
        {"put": key.puts, "remove": key.removes}.get(op.kind, key.sights).append(op)
    for key in keys.values():
        key.puts.sort(key=lambda op: op.end)
        key.removes.sort(key=lambda op: op.begin)
    return keys


class _Settled:
    """Until when an operation can have taken effect."""

    def __init__(self, history: History) -> None:
        self._wholes = history.wholes

    def __call__(self, op: Op) -> float:
        if op.outcome != ERROR:
            return op.end
        seen = op.begin if op.end == math.inf else op.end
        after = bisect_left(self._wholes, seen)
        return self._wholes[after] + SETTLE_S if after < len(self._wholes) else math.inf


# -- what a key's operations allow -------------------------------------------------------------------------------------


def _check_key(
    key: _Key, settled: Callable[[Op], float], excuses: "_Excuses", evictions: "_Evictions"
) -> Iterator[Violation]:
    puts = {op.number: op for op in key.puts}
    removes_end_by_begin = list(accumulate((settled(op) for op in key.removes), max))  # the latest end so far
    removes_begin = [op.begin for op in key.removes]
    certain = sorted((op.end, op.begin) for op in key.removes if op.outcome != ERROR)
    certain_ends = [end for end, _ in certain]
    latest_begin = list(accumulate((begin for _, begin in certain), max))
    acknowledged = [op for op in key.puts if op.outcome == OK and not op.existed]
    acknowledged_ends = [op.end for op in acknowledged]
    for sight in key.sights:
        # The latest remove that was over before this began: what it found, it ended.
        before = bisect_left(certain_ends, sight.begin)
        swept_at = latest_begin[before - 1] if before else -math.inf
        if sight.error == "Wrong":
            yield Violation("wrong", sight.said, sight)
        elif sight.outcome == OK and sight.kind == "get":
            put = puts.get(sight.number)
            if put is None or put.begin > sight.end:
                yield Violation("wrong", f"bytes of put {sight.number}, which was never begun under this key", sight)
            elif settled(put) < swept_at:
                yield Violation("risen", f"put {sight.number} had ended before a remove began at {swept_at:.3f}", sight)
        elif sight.outcome == OK:
            if not any(put.begin <= sight.end and settled(put) >= swept_at for put in key.puts):
                yield Violation("risen", f"no put since a remove that began at {swept_at:.3f}", sight)
        elif sight.outcome == MISS or sight.error in UNREADABLE:
            begun = bisect_right(removes_begin, sight.end)
            removed_until = removes_end_by_begin[begun - 1] if begun else -math.inf
            for index in range(bisect_left(acknowledged_ends, sight.begin) - 1, -1, -1):
                put = acknowledged[index]
                if put.end < removed_until:
                    break
                if put.begin > removed_until and not excuses.covers(put, sight):
                    if not evictions.may_have_taken(put, sight):
                        yield Violation("lost", f"put {put.number} of {put.copies} copies is not there", sight)
                    break


class _Excuses:
    """Whether all holders of an object may have been away, or dead, at a time.

    The holders are on distinct nodes. Between two moments when the cluster was whole, fewer dead nodes than holders
    cannot have taken them all; from the later moment on the lost ones have been made again.
    """

    def __init__(self, outages: Sequence[Outage], wholes: Sequence[float]) -> None:
        self._outages = [outage for outage in outages if outage.target.startswith("node")]
        self._windows = list(pairwise([-math.inf, *wholes, math.inf]))

    def covers(self, put: Op, sight: Op) -> bool:
        return any(
            len(self._missing(put, sight, begin, end)) >= put.copies
            for begin, end in self._windows
            if begin <= sight.end and end >= put.begin
        )

    def _missing(self, put: Op, sight: Op, begin: float, end: float) -> set[str]:
        dead = {
            outage.target
            for outage in self._outages
            if outage.fatal and begin <= outage.begin < end and put.begin <= outage.end and outage.begin <= sight.end
        }
        if not (sight.begin <= end and sight.end >= begin):
            return dead
        return dead | {
            outage.target
            for outage in self._outages
            if not outage.fatal and outage.begin <= sight.end and outage.end + RECOVERY_S >= sight.begin
        }


class _Evictions:
    """Objects that were gone while the master evicted: at most as many as it says."""

    def __init__(self, history: History) -> None:
        self._samples = sorted(history.samples, key=lambda sample: sample.at)
        self._at = [sample.at for sample in self._samples]
        self._taken: dict[int, Op] = {}

    def may_have_taken(self, put: Op, sight: Op) -> bool:
        before = max(0, bisect_left(self._at, put.begin) - 1)
        after = min(len(self._at) - 1, bisect_right(self._at, sight.end))
        if after < 0 or self._samples[after].evicted_objects == self._samples[before].evicted_objects:
            return False
        self._taken[put.number] = sight
        return True

    def too_many(self) -> Iterator[Violation]:
        evicted = self._samples[-1].evicted_objects if self._samples else 0
        if len(self._taken) > evicted:
            yield Violation("lost", f"{len(self._taken)} objects are gone, {evicted} were evicted")


# -- times -------------------------------------------------------------------------------------------------------------


def calm(history: History) -> list[tuple[float, float]]:
    """When everything has to be normal: no fault, and RECOVERY_S since the last one's heal."""
    if not history.ops:
        return []
    ends = [op.end for op in history.ops if op.end != math.inf]
    begin, last = min(op.begin for op in history.ops), max(ends, default=0.0)
    spans: list[tuple[float, float]] = []
    for outage in sorted(history.outages, key=lambda outage: outage.begin):
        if outage.begin > begin:
            spans.append((begin, outage.begin))
        begin = max(begin, outage.end + RECOVERY_S)
    return [*spans, (begin, last)] if last > begin else spans


def _check_times(history: History) -> Iterator[Violation]:
    kills = [each for each in history.outages if each.kind == "client kill"]
    spans = calm(history)
    for op in history.ops:
        ended = op.end
        if ended == math.inf:
            ended = min((k.end for k in kills if k.target == op.client and k.end >= op.begin), default=math.inf)
        for begin, end in spans:
            fault = abnormal(op) if begin <= op.begin and op.end <= end else ""
            if min(ended, end) - max(op.begin, begin) > SLOW_S:
                fault = f"took {ended - op.begin:.1f} s"
            if fault:
                yield Violation("abnormal", fault, op)


def abnormal(op: Op) -> str:
    """What is not as it should be with nothing broken; empty where all is well."""
    if op.outcome == ERROR:
        return f"failed: {op.error}"
    if op.end - op.begin > SLOW_S:
        return f"took more than {SLOW_S:g} s"
    if op.kind == "put" and not op.existed and op.copies < op.wanted:
        return f"achieved {op.copies} of {op.wanted} copies"
    return ""
