"""Seeds of the simulation, the same in every run; and each promise broken on purpose once, which must be noticed."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.sim.mutants import MUTANTS
from tests.sim.runs import Runs, describe, first_failures, run_many, run_seed, seeds_to_catch

SEEDS = 2_000
TRACED = range(7, 207, 20)
FIRST = {"overlook_writers": 629, "no_rest_after_a_restart": 251}
"""Where the search for rare ones begins: at a seed that showed them when this was written. Others may, too."""
HAPPENS = [
    "kill_node", "pause_node", "leave", "cut_stream", "part_node", "part_client", "part_transfer", "part_nodes",
    "kill_master", "pause_master", "pause_client", "kill_client", "flip", "drain", "drained copies", "put", "get",
    "displaced objects", "expired objects", "refused pins", "soft pins evicted",
    "get_into", "remove", "ask",
    "hits", "failovers", "adopted copies", "calls that land after their retry", "corrupt copies", "degraded puts",
    "dropped claims", "evicted objects", "expired writes", "failed repairs", "failed transfers", "late writes",
    "lost copies", "lost objects", "lost replies", "put retries", "repaired copies", "repeated requests",
    "hedges", "hedges won", "reused extents", "rpc retries", "stalled transfers", "trimmed copies", "writers frozen",
    "writes later than their time",
]  # fmt: skip


@pytest.mark.timeout(900)
def test_no_seed_breaks_a_promise() -> None:
    runs = Runs()
    for part in run_many(0, SEEDS, jobs=min(2, os.cpu_count() or 1)):
        runs.add(part)
    print(describe(runs.counts))
    assert not runs.failures, first_failures(runs.failures)
    rare = [what for what in HAPPENS if runs.counts[what] < 10]
    assert not rare, f"hardly ever happened: {rare}"


def digest(seed: int) -> str:
    return run_seed(seed, trace=True)[0].digest


@pytest.mark.timeout(300)
def test_the_same_seed_has_the_same_trace_in_another_process() -> None:
    here = [digest(seed) for seed in TRACED]
    assert len(set(here)) == len(TRACED)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
        assert list(other.map(digest, TRACED)) == here


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_product_is_noticed(mutant: str) -> None:
    caught = seeds_to_catch(mutant, limit=SEEDS, first=FIRST.get(mutant, 0))
    assert caught, f"{mutant} breaks {MUTANTS[mutant][0]}, and nobody notices"
    print(f"{mutant}: {caught[0]} seeds, {caught[1]}")
