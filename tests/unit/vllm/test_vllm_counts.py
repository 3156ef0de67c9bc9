"""How counts are written down, how they add up, and what the front end makes of them."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from larder.stats import Stats, tallied
from larder.vllm.counts import UP, add, carried, seconds_of, sums, took
from larder.vllm.metrics import BUCKETS, COUNTERS, Metrics, withdraw
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

KINDS = {kind: kind for kind in (Counter, Gauge, Histogram)}
LABELS = {"model_name": "tiny", "engine": "0", "role": "consumer"}


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    made = Metrics(KINDS, "consumer", ["model_name", "engine"], {0: ["tiny", "0"], 1: ["tiny", "1"]})
    yield made
    withdraw()


def shown(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"larder_client_{name}", LABELS | labels)


@pytest.mark.parametrize(("seconds", "read"), [(0.0012345, 0.00123), (123.45, 123.0), (1234.5, 1230.0), (-1e-9, 0.0)])
def test_a_duration_travels_with_its_first_three_digits(seconds: float, read: float) -> None:
    assert seconds_of(took("load_seconds", seconds, "engine")) == read


def test_what_travels_is_bounded_however_many_loads_end_in_one_step() -> None:
    counts: dict[str, float] = {}
    for number in range(200_000):
        add(counts, {took("load_seconds", 0.001 + number * 1e-5, "engine"): 1})
    assert len(counts) < 3_000
    assert sum(counts.values()) == 200_000


def test_counts_of_workers_add_up_and_the_last_word_on_the_store_counts() -> None:
    counts = {"loads": 1, "load_seconds engine 0.5": 1, UP: 1.0}
    add(counts, {"loads": 2, "load_seconds engine 0.5": 1, "load_seconds shared_memory 0.25": 2, UP: 0.0})
    assert counts == {"loads": 3, "load_seconds engine 0.5": 2, "load_seconds shared_memory 0.25": 2, UP: 0.0}
    assert sums(counts) == {"loads": 3, "load_seconds": 1.5}


@pytest.mark.parametrize(
    ("tally", "by", "parts"),
    [
        ({}, "none", {"got_bytes shared_memory": 100}),
        ({"read_bytes_shm": 100}, "shared_memory", {"got_bytes shared_memory": 100}),
        (
            {"read_bytes_shm": 150, "read_bytes_engine": 50},
            "engine",
            {"got_bytes engine": 25, "got_bytes shared_memory": 75},
        ),
        ({"read_bytes_engine": 300, "written_bytes_shm": 5}, "engine", {"got_bytes engine": 100}),
    ],
)
def test_bytes_are_shared_out_among_what_carried_them(tally: Any, by: str, parts: Any) -> None:
    assert carried("got_bytes", 100, tally, "read") == (by, parts)


def test_a_load_that_brought_nothing_has_no_bytes() -> None:
    assert carried("got_bytes", 0, {}, "read") == ("none", {})


async def test_calls_at_once_are_tallied_each_by_itself_and_with_what_they_start() -> None:
    stats, tallies = Stats(), [dict[str, float](), dict[str, float]()]

    async def part(size: int) -> None:
        await asyncio.sleep(0)
        stats.add("bytes", size)

    async def call(number: int) -> None:
        with tallied(tallies[number]):
            await asyncio.gather(part(number), part(10))

    await asyncio.gather(call(0), call(1), part(100))
    assert [tally["bytes"] for tally in tallies] == [10, 11]
    assert stats.as_dict() == {"bytes": 121}


def test_every_duration_lies_in_its_bucket(metrics: Metrics) -> None:
    metrics.observe({took("load_seconds", 0.003, "engine"): 2, took("load_seconds", 40, "engine"): 1}, "consumer", 0)
    metrics.observe({took("lookup_seconds", 0.0004): 1}, "consumer", 0)
    below = [shown("load_seconds_bucket", transport="engine", le=str(bound)) for bound in BUCKETS]
    assert below == [0.0 if bound < 0.003 else 2.0 for bound in BUCKETS]
    assert shown("load_seconds_count", transport="engine") == 3
    assert shown("load_seconds_sum", transport="engine") == pytest.approx(40.006)
    assert shown("lookup_seconds_bucket", le="0.0005") == 1


def test_every_count_is_shown_from_the_start_and_only_of_the_engine_that_has_it(metrics: Metrics) -> None:
    assert {shown(f"{name}_total") for name in COUNTERS} == {0.0}
    metrics.observe({"loads": 2, "got_bytes engine": 7}, "consumer", 0)
    metrics.observe({"loads": 3}, "consumer", 1)
    assert (shown("loads_total"), shown("loads_total", engine="1")) == (2, 3)
    assert shown("got_bytes_total", transport="engine") == 7
    metrics.observe({"loads": 4}, "producer", 0)
    assert (shown("loads_total"), shown("loads_total", role="producer")) == (2, 4)


def test_whether_the_store_answers_is_shown_once_it_is_known(metrics: Metrics) -> None:
    assert shown("up") is None  # an engine that has not stepped yet is none whose store is away
    for up in (1.0, 0.0):
        metrics.observe({UP: up}, "consumer", 0)
        assert shown("up") == up


def test_a_second_engine_in_one_process_takes_over(metrics: Metrics) -> None:
    metrics.observe({"loads": 2}, "consumer", 0)
    other = Metrics(KINDS, "both", ["model_name", "engine"], {0: ["tiny", "0"]})
    assert shown("loads_total") is None
    assert shown("loads_total", role="both") == 0
    other.observe({"loads": 1}, "both", 0)
    assert shown("loads_total", role="both") == 1
