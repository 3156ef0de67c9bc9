"""What a run was like, as tables: operations, faults by kind, the slowest put and get by phase, recoveries."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from tests.chaos.checker import RECOVERY_S, Violation, abnormal
from tests.chaos.history import ERROR, History, Op, Outage

SHOWN_MAX = 20


def show(
    console: Console, history: History, heals: Sequence[tuple[float, float, list[str]]], found: Sequence[Violation]
) -> None:
    console.print(_operations(history.ops))
    console.print(_phases(history))
    console.print(_recoveries(history, heals))
    evicted = history.samples[-1].evicted_objects if history.samples else 0
    console.print(f"evicted objects: {evicted}; violations: {len(found)}")
    for violation in found[:SHOWN_MAX]:
        console.print(str(violation), style="red", markup=False)
    if len(found) > SHOWN_MAX:
        console.print(f"... and {len(found) - SHOWN_MAX} more: {Counter(each.rule for each in found)}", style="red")


def _operations(ops: Sequence[Op]) -> Table:
    table = Table("operation", "done", "misses", "existed", "errors", "never ended", title="operations, a key each")
    for kind in ("put", "get", "seen", "remove"):
        mine = [op for op in ops if op.kind == kind]
        ended = [op for op in mine if op.end != math.inf]
        errors = Counter(op.error for op in ended if op.outcome == ERROR)
        table.add_row(
            kind,
            str(sum(op.outcome == "ok" for op in ended)),
            str(sum(op.outcome == "miss" for op in ended)),
            str(sum(op.existed for op in ended)),
            ", ".join(f"{count} {name}" for name, count in errors.most_common()) or "0",
            str(len(mine) - len(ended)),
        )
    return table


def _phases(history: History) -> Table:
    times = ("p50 ms", "p99 ms", "max")
    table = Table("phase", "faults", "puts", *times, "gets", *times, title="times")
    kinds = sorted({outage.kind for outage in history.outages})
    ops_of: dict[str, list[Op]] = defaultdict(list)
    for op in history.ops:
        for phase in _phases_of(op, history.outages) if op.end != math.inf else ():
            ops_of[phase].append(op)
    for phase in ["calm", "recovering", *kinds]:
        faults = [outage for outage in history.outages if outage.kind == phase]
        cells = [phase, str(len(faults) or "")]
        for kind in ("put", "get"):
            taken_ms = sorted(
                1000 * (op.end - op.begin) for op in ops_of[phase] if op.kind == kind and op.outcome != ERROR
            )
            cells += [str(len(taken_ms)), *(f"{_quantile(taken_ms, share):.0f}" for share in (0.5, 0.99, 1.0))]
        table.add_row(*cells)
    table.caption = "a client's own faults do not count into its times"
    return table


def _phases_of(op: Op, outages: Iterable[Outage]) -> set[str]:
    during = [each for each in outages if each.begin <= op.end and each.end >= op.begin]
    if any(each.target == op.client for each in during):
        return set()
    if during:
        return {each.kind for each in during}
    return {"recovering" if any(0 <= op.end - each.end <= RECOVERY_S for each in outages) else "calm"}


def _recoveries(history: History, heals: Sequence[tuple[float, float, list[str]]]) -> Table:
    """From the heal to the end of the last operation that was not normal, and to the last copy made again."""
    table = Table("healed", "normal after s", "whole after s", "not normal", title="recoveries")
    strange = [op for op in history.ops if op.end != math.inf and abnormal(op)]
    for healed_at, whole_at, kinds in heals:
        next_fault = min((each.begin for each in history.outages if each.begin > healed_at), default=math.inf)
        late = [op for op in strange if healed_at <= op.end < next_fault]
        normal_s = max((op.end - healed_at for op in late), default=0.0)
        why = Counter(abnormal(op) for op in late if op.end > healed_at)
        table.add_row(
            ", ".join(kinds),
            f"{normal_s:.1f}",
            f"{whole_at - healed_at:.1f}",
            ", ".join(f"{count} {what}" for what, count in why.most_common(2)),
        )
    return table


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
