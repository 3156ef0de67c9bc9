"""Engines whose store cannot do what they ask: no node, no room, objects that go before they are loaded.

Whatever the store lacks, no request fails and none waits for it. Answers are compared with those of an engine that has
no connector; each test ends with a control in which the store is used.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.cluster import Cluster
from tests.e2e.vllm_engine import BLOCK, Engine, connector, prompt_of, whole_blocks

SMALL = 40  # blocks: a request of 900 tokens takes 29 of them
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A master that has no node yet."""
    with Cluster(tmp_path_factory.mktemp("store")) as cluster:
        cluster.start_master()
        cluster.wait_ready()
        yield cluster


@pytest.fixture(scope="module")
def engines(cluster: Cluster, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    """`plain` has no connector. With `small` what fails to load fails its request; it knows the connector's name only.

    `multi` has two of Larder, which are called differently, and another connector: what is handed to all of them at the
    start is the first one's.
    """
    work_dir = tmp_path_factory.mktemp("engines")
    children = [
        connector(cluster.master, kv_role="kv_producer", namespace="other"),
        connector(cluster.master, kv_role="kv_consumer"),
        {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_producer",
            "kv_connector_extra_config": {"shared_storage_path": str(work_dir / "example")},
        },
    ]
    named = connector(cluster.master, kv_load_failure_policy="fail")
    del named["kv_connector_module_path"]
    multi = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": children},
    }
    engines = {
        "multi": Engine("multi", work_dir, model, kv_blocks=SMALL, transfer=multi),
        "plain": Engine("plain", work_dir, model, kv_blocks=SMALL),
        "small": Engine("small", work_dir, model, kv_blocks=SMALL, transfer=named),
    }
    try:
        yield {name: engine.ready() for name, engine in engines.items()}
    finally:
        for engine in engines.values():
            engine.close()


def test_a_store_without_a_node_costs_no_request_its_blocks(engines: dict[str, Engine], cluster: Cluster) -> None:
    plain, small = engines["plain"], engines["small"]
    prompts = [prompt_of(900, seed=i) for i in range(10)]
    for engine in (plain, small):
        engine.ask(prompt_of(900, seed=99))
    expected = plain.in_turn(prompts=prompts, max_tokens=2)
    answers = small.in_turn(prompts=prompts, max_tokens=2)
    assert [answer["tokens"] for answer in answers] == [answer["tokens"] for answer in expected]
    assert sum(answer["seconds"] for answer in answers) < 5.0  # each that waits for one save would take 3.75 s
    assert small.used_blocks() == 0

    cluster.start_node("node-1", dram="48MB")
    cluster.wait_ready()
    small.until_saved(prompt=prompt_of(300, seed=98))
    computed = small.ask(prompts[0])  # half the pool's blocks are saved with the first step, the rest a little later
    assert small.reset()
    loaded = small.ask(prompts[0])
    assert loaded["cached"] == whole_blocks(900)
    assert loaded["tokens"] == computed["tokens"]
    assert loaded["tokens"][:2] == expected[0]["tokens"]


def test_an_engine_that_waits_for_the_store_lets_the_stores_threads_run(engines: dict[str, Engine]) -> None:
    """An engine in its user's process steps in a loop: what it waits for needs the interpreter that it would keep."""
    plain, small = engines["plain"], engines["small"]
    prompts = [prompt_of(300, seed=700 + i) for i in range(4)]
    expected = [answer["tokens"] for answer in plain.in_turn(prompts=prompts, max_tokens=2)]
    for prompt in prompts:
        small.ask(prompt)
    assert small.reset()
    small.switch_interval(seconds=1.0)
    answers = small.in_turn(prompts=prompts, max_tokens=2)
    small.switch_interval(seconds=0.005)
    assert [answer["tokens"] for answer in answers] == expected
    assert [answer["cached"] for answer in answers] == [whole_blocks(300)] * 4
    assert sum(answer["seconds"] for answer in answers) < 4.0  # with one such turn of each lookup and load it is 8 s


def test_what_is_evicted_before_a_requests_turn_fails_no_load(engines: dict[str, Engine]) -> None:
    """Twice as much as the store holds, asked for at once, again and again in another order."""
    plain, small = engines["plain"], engines["small"]
    prompts = [prompt_of(8 * BLOCK + 20, seed=100 + i) for i in range(200)]
    expected = [answer["tokens"] for answer in plain.generate(prompts=prompts, max_tokens=2)]
    before = small.counts()
    order = list(range(len(prompts)))
    for seed in range(3):
        random.Random(seed).shuffle(order)
        assert small.reset()
        answers = small.generate(prompts=[prompts[i] for i in order], max_tokens=2)
        assert [answer["tokens"] for answer in answers] == [expected[i] for i in order]
    grown = {name: count - before.get(name, 0) for name, count in small.counts().items()}
    assert grown["larder_client_failed_gets_total"] == 0
    assert grown["larder_client_loads_total"] > 20
    assert grown["larder_client_put_objects_total"] > 200


def test_under_another_connector_what_others_saved_is_loaded_and_counted(engines: dict[str, Engine]) -> None:
    plain, small, multi = engines["plain"], engines["small"], engines["multi"]
    multi.ask(prompt_of(40, seed=400))  # a first step
    prompts = [prompt_of(9 * BLOCK + 7, seed=401 + i) for i in range(2)]
    for prompt in prompts:
        computed = small.ask(prompt)
        loaded = multi.ask(prompt)
        assert loaded["tokens"] == computed["tokens"] == plain.ask(prompt)["tokens"]
        assert loaded["cached"] == 9 * BLOCK
    counts = multi.counts()
    assert counts["larder_client_hit_tokens_total"] == 2 * 9 * BLOCK
    assert counts["larder_client_put_objects_total"] > 0  # the other child saved it under its own name
