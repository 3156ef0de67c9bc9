"""Many seeds, on several processes, and what came of them."""

import logging
import multiprocessing
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

from tests.sim.loop import Violation
from tests.sim.mutants import applied
from tests.sim.world import World

CHUNK = 25  # seeds handed to a process at once


@dataclass
class Runs:
    """What came of some seeds."""

    seeds: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: "Runs") -> None:
        self.seeds += other.seeds
        self.counts.update(other.counts)
        self.failures += other.failures


def run_seed(seed: int, *, mutant: str | None = None, trace: bool = False) -> tuple[World, str]:
    """The world at its end, and what broke; empty if nothing did."""
    logging.disable(logging.CRITICAL)
    try:
        with applied(mutant), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a killed process was about to await never is
            world = World(seed, trace=trace)
            try:
                world.run()
            except Exception as error:
                return world, "".join(traceback.format_exception(error)) if trace else _said(error)
            return world, ""
    finally:
        logging.disable(logging.NOTSET)


def _said(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    where = traceback.extract_tb(error.__traceback__)[-1]
    return str(error) if isinstance(error, Violation) else f"{error!r} in {where.name}, {where.filename}:{where.lineno}"


def run_range(first: int, seeds: int, mutant: str | None = None) -> Runs:
    runs = Runs()
    for seed in range(first, first + seeds):
        world, broken = run_seed(seed, mutant=mutant)
        runs.seeds += 1
        runs.counts.update(world.counts)
        if broken:
            runs.failures.append((seed, broken))
    return runs


def run_many(first: int, seeds: int, *, jobs: int) -> Iterator[Runs]:
    """Chunk by chunk, in order."""
    starts = range(first, first + seeds, CHUNK)
    sizes = [min(CHUNK, first + seeds - start) for start in starts]
    if jobs == 1:
        yield from map(run_range, starts, sizes)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run_range, starts, sizes)


def seeds_to_catch(mutant: str, *, limit: int, first: int = 0) -> tuple[int, str] | None:
    """How many of the seeds 0 to `limit`, from `first` on and then from 0, it takes until something breaks, and what
    does; None if nothing does."""
    for number, seed in enumerate(chain(range(first, limit), range(first)), 1):
        _, broken = run_seed(seed, mutant=mutant)
        if broken:
            return number, broken
    return None


def describe(counts: Counter[str]) -> str:
    """What happened, so that a scenario that never happens is noticed."""
    width = max(map(len, counts), default=0)
    return "\n".join(f"  {name:<{width}}  {counts[name]:>10,}" for name in sorted(counts))


def first_failures(failures: list[tuple[int, str]], most: int = 5) -> str:
    """For people: the seed, what broke, and the command that shows how."""
    said = [
        f"seed {seed}: {broken}\n  see: python -m tests.sim --seed {seed} --trace" for seed, broken in failures[:most]
    ]
    return "\n".join(chain(said, [f"and {len(failures) - most} more"] if len(failures) > most else []))
