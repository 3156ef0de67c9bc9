"""`python -m tests.sim`: many seeds, one with its trace, or the mutants' table."""

import argparse
import sys
import time

from tests.sim.mutants import MUTANTS
from tests.sim.runs import Runs, describe, first_failures, run_many, run_seed, seeds_to_catch

FAILURES_MAX = 20  # more of them would tell nothing new


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000, help="how many (default 2000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: what happened")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), help="with --seed: the product broken on purpose")
    parser.add_argument("--mutants", action="store_true", help="how many seeds each mutant takes")
    options = parser.parse_args()
    if options.mutants:
        return show_mutants(options.seeds)
    if options.seed is not None:
        return show_seed(options.seed, options.mutant, options.trace)
    return show_many(options.first, options.seeds, options.jobs)


def show_many(first: int, seeds: int, jobs: int) -> int:
    runs, begun, told = Runs(), time.monotonic(), time.monotonic()
    for part in run_many(first, seeds, jobs=jobs):
        runs.add(part)
        for failure in part.failures:
            print(first_failures([failure]), flush=True)
        if time.monotonic() - told > 30:
            told = time.monotonic()
            spent = told - begun
            print(f"{runs.seeds:,} seeds, up to {first + runs.seeds - 1}, {spent:.0f} s", flush=True)
        if len(runs.failures) >= FAILURES_MAX:
            break
    spent = time.monotonic() - begun
    each_ms = 1000 * spent / runs.seeds
    print(f"{runs.seeds:,} seeds from {first} in {spent:.0f} s, {each_ms:.1f} ms each on {jobs} processes")
    print(describe(runs.counts))
    print(f"{len(runs.failures)} failed")
    return 1 if runs.failures else 0


def show_seed(seed: int, mutant: str | None, trace: bool) -> int:
    world, broken = run_seed(seed, mutant=mutant, trace=trace)
    if trace:
        print("\n".join(world.events))
        print(f"trace {world.digest}")
    print(describe(world.counts))
    print(broken or f"seed {seed}: nothing broke")
    return 1 if broken else 0


def show_mutants(limit: int) -> int:
    missed = 0
    print(f"{'mutant':<32} {'invariants':<10} {'seeds':>6}  first seen as")
    for name, (invariants, _) in MUTANTS.items():
        caught = seeds_to_catch(name, limit=limit)
        missed += caught is None
        seeds, broken = caught or (f">{limit}", "not caught")
        print(f"{name:<32} {invariants:<10} {seeds:>6}  {broken.splitlines()[0][:110]}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
