"""`make bench-eviction TRACE=FILE`: `larder trace replay`, judged against targets.

The figures are those of `services.master.replay`: the share of a trace's blocks that a pool serves with the master's
own code, next to plain recency (LRU) and the optimum that knows the future. Targets exist for one trace only.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from larder.errors import LarderError
from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table

from bench.report import console
from services.master.replay.figures import Figures, check_capacities, replay
from services.master.replay.policies import Blocks
from services.master.replay.traces import TraceError, load

CAPACITIES = "1000,5000,10000,30000"
CONVERSATION = (12_031, 288_500)  # requests and blocks of the trace that the targets are for
RATIO_MIN = {5_000: 1.3, 10_000: 1.1}  # to LRU
BELOW_LRU_MAX = 0.2  # points, at any other capacity


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="bench-eviction", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("trace", type=Path, metavar="TRACE", help="a file, a request a line")
    parser.add_argument("--capacities", default=CAPACITIES, metavar="BLOCKS,...", help=f"of the pool ({CAPACITIES})")
    arguments = parser.parse_args()
    try:
        trace = load(arguments.trace)
        if trace.bad:
            raise TraceError(f"{trace.path}, line {trace.bad[0].number}: {trace.bad[0].why}")
        capacities = parse_capacities(arguments.capacities)
        check_capacities(capacities, trace)
    except (LarderError, OSError) as error:
        sys.exit(f"bench-eviction: {error}")
    figures = replay(trace, capacities, _watched)
    console.print(
        f"{arguments.trace.name}: {figures.requests:,} requests, {figures.blocks:,} blocks, {figures.distinct:,} of "
        "them distinct"
    )
    console.print(_table(figures, (figures.requests, figures.blocks) == CONVERSATION))


def parse_capacities(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise TraceError(f"capacities {text!r}: give numbers of blocks with commas between them") from None


def _watched(requests: Iterable[Blocks], what: str, total: int) -> Iterable[Blocks]:
    return track(requests, what, total=total, console=console, transient=True, disable=not console.is_terminal)


def _table(figures: Figures, judged: bool) -> Table:
    table = Table(title="blocks served, in % of all", box=SIMPLE_HEAD)
    for heading in ("pool, blocks", "LRU", "Larder", "optimum", "Larder to LRU", "target", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for point in figures.points:
        plain, ours, best = (100 * point.shares[name] for name in ("LRU", "Larder", "optimum"))
        wanted, met = target(point.capacity_blocks, plain, ours)
        verdict = ("met" if met else "[bold red]MISSED[/]") if judged else ""
        ratio = f"{ours / plain:.3f}" if plain else ""
        shown = f"{point.capacity_blocks:,}"
        table.add_row(shown, f"{plain:.2f}", f"{ours:.2f}", f"{best:.2f}", ratio, wanted if judged else "", verdict)
    return table


def target(capacity: int, plain: float, ours: float) -> tuple[str, bool]:
    """Targets for a pool on the conversation trace, and whether they are met. Shares in percent."""
    if capacity in RATIO_MIN:
        return f"at least {RATIO_MIN[capacity]:g} x", ours >= RATIO_MIN[capacity] * plain
    return f"at most {BELOW_LRU_MAX:g} below", ours >= plain - BELOW_LRU_MAX


if __name__ == "__main__":
    main()
