"""Real processes for the end-to-end tests: a store by itself (fast), and one with vLLM engines (a minute to start).

Both are shared; a test that kills a part of the store starts it again before it returns. Ports are free ones, pools and
logs are the cluster's own, and everything ends with the fixture. The engines live as long as the session: what needs
them is in files that follow each other, test_vllm_*.py.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.cluster import Cluster
from demo.tiny_model import make_model

NODES = ("node-1", "node-2")


@pytest.fixture(scope="module")
def store_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Master and two storage nodes of 64 MB."""
    with Cluster(tmp_path_factory.mktemp("store")) as cluster:
        cluster.start_master()
        for node in NODES:
            cluster.start_node(node, dram="64MB")
        cluster.wait_ready()
        yield cluster


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_model(path)
    return path


@pytest.fixture(scope="session")
def engines_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Master and two storage nodes, which outlive the modules that use the engines on it."""
    with Cluster(tmp_path_factory.mktemp("engines")) as cluster:
        cluster.start_master()
        for node in NODES:
            cluster.start_node(node)
        cluster.wait_ready()
        yield cluster


KEEPS_RESPONSES = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}
PRODUCER: dict[str, Any] = {"kv_role": "kv_producer"}
CONSUMER: dict[str, Any] = {"kv_role": "kv_consumer", "env": KEEPS_RESPONSES}
PAIR: dict[str, dict[str, Any]] = {"prefill": {**PRODUCER, "extra_config": {"copies": 2}}, "decode": CONSUMER}
OTHERS: dict[str, dict[str, Any]] = {
    "plain": {"own_worker": False},
    "spare": {**PRODUCER, "own_worker": False},
    "trusting": {**CONSUMER, "extra_config": {"verify": False}, "own_worker": False},
}


def with_engines(store: Cluster, model: Path, wanted: dict[str, dict[str, Any]]) -> Cluster:
    """These run, whatever a module before has left of them."""
    for name, settings in wanted.items():
        if name not in store.processes or not store.processes[name].running():
            store.start_engine(name, model, **settings)
    store.wait_ready()
    return store


@pytest.fixture(scope="module")
def pair(engines_store: Cluster, model: Path) -> Cluster:
    """A prefill engine, which puts two copies, and a decode engine."""
    return with_engines(engines_store, model, PAIR)


@pytest.fixture(scope="module")
def engines(engines_store: Cluster, model: Path) -> Cluster:
    """A plain engine, two prefill and two decode engines; the one called `trusting` does not verify checksums."""
    return with_engines(engines_store, model, PAIR | OTHERS)


@pytest.fixture(scope="module")
def serve(engines: Cluster) -> Callable[[list[str], list[str]], None]:
    """Puts the proxy in front of these prefill and decode engines, in place of the one there may be."""

    def start(prefill: list[str], decode: list[str]) -> None:
        if former := engines.processes.get("proxy"):
            former.stop()
        engines.start_proxy(prefill=prefill, decode=decode)
        engines.wait_ready()

    return start
