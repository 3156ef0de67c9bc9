"""Every panel of every dashboard shows data of a live cluster, and alerts about what engines get fire for their cause.

`pytest tests/e2e/test_vllm_dashboards.py -s` shows each panel's data as a table. What is done to the store is undone:
processes are stopped for seconds, not killed. The engine that is killed is not one of vLLM's.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.cluster import HOST, Cluster, free_port
from demo.traffic import Prompt, ask, make_prompts, metric
from tests.e2e.conftest import NODES
from tests.e2e.pools import zero_pools
from tests.e2e.watch import Prometheus, Sample

ROOT = Path(__file__).resolve().parents[2]
BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "deploy/grafana").glob("*.json"))}
ALERTS = ("LarderLookupsFail", "LarderSavesFail", "LarderEngineWithoutStore")
OBJECTS = 2  # of a prompt: 600 tokens are four whole blocks, two blocks an object
SAVED_S = 10.0
FOUND_S = 5.0  # a busy engine may miss a scrape
MEANT = {"$__rate_interval": "5m", "$node": ".*", "$engine": ".*"}
pytestmark = pytest.mark.timeout(600)  # the first test may wait for the engines' starts


@pytest.fixture(scope="module")
def prompts(model: Path) -> Iterator[Prompt]:
    """A prompt nobody has seen, each time one is taken."""
    return iter(make_prompts(model, tokens=[600] * 40, seed=14))


@pytest.fixture(scope="module")
def cluster(pair: Cluster) -> Iterator[Cluster]:
    """Behind the proxy also an engine that fails what it is sent, and may die."""
    port = free_port()
    pair.start_program(
        "mortal", "python", "-m", "tests.e2e.http_engine", "--fails", "--port", str(port),
        ready="engine ready", env={"PYTHONPATH": ":".join([str(ROOT), *sys.path])},
    )  # fmt: skip
    pair.wait_ready()
    pair.addresses["mortal"] = f"{HOST}:{port}"
    if former := pair.processes.get("proxy"):
        former.stop()
    pair.start_proxy(prefill=["prefill", "mortal"], decode=["decode"])
    pair.wait_ready()
    yield pair
    pair.processes["mortal"].kill()


@pytest.fixture(scope="module")
def prometheus(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    jobs = {"master": ["master"], "storage-node": NODES, "proxy": ["proxy"], "engine": ["prefill", "decode"]}
    targets = {job: [cluster.metrics[name] for name in names] for job, names in jobs.items()}
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), targets, interval="1s")
    prometheus.await_value("up", lambda found: len(found) == 6 and all(sample.value for sample in found))
    yield prometheus
    prometheus.process.stop()


def test_an_engine_that_finds_nothing(cluster: Cluster, prometheus: Prometheus, prompts: Iterator[Prompt]) -> None:
    for _ in range(3):
        ask(cluster.addresses["decode"], next(prompts), max_tokens=2)
        time.sleep(1)
    prometheus.await_firing("LarderNothingHit")


def test_loads_of_bytes_that_are_not_what_they_were(
    cluster: Cluster, prometheus: Prometheus, prompts: Iterator[Prompt]
) -> None:
    assert "LarderLoadsFail" not in prometheus.firing()
    for _ in range(3):
        prompt = next(prompts)
        before = stored(cluster)
        ask(cluster.addresses["prefill"], prompt, max_tokens=1)
        until = time.monotonic() + SAVED_S
        while stored(cluster) < before + OBJECTS:
            assert time.monotonic() < until, "the prefill engine's puts do not end"
            time.sleep(0.05)
        zero_pools(cluster)
        ask(cluster.addresses["decode"], prompt, max_tokens=2)
    prometheus.await_firing("LarderLoadsFail", "LarderCorruptCopies")


def stored(cluster: Cluster) -> float:
    return metric(cluster.metrics["master"], "larder_master_objects")


def test_a_master_that_stops(cluster: Cluster, prometheus: Prometheus, prompts: Iterator[Prompt]) -> None:
    assert not set(ALERTS) & set(prometheus.firing())
    cluster.processes["master"].pause()
    try:
        for _ in range(3):
            for engine in ("prefill", "decode"):
                ask(cluster.addresses[engine], next(prompts), max_tokens=2)
        prometheus.await_firing(*ALERTS)
    finally:
        cluster.processes["master"].resume()
    prometheus.await_value('larder_master_nodes{state="attached"}', lambda found: [s.value for s in found] == [2])
    for engine in ("prefill", "decode"):
        ask(cluster.addresses[engine], next(prompts), max_tokens=8)
    prometheus.await_value("min(larder_client_up)", lambda found: [sample.value for sample in found] == [1])


def test_every_panel_shows_data(cluster: Cluster, prometheus: Prometheus, prompts: Iterator[Prompt]) -> None:
    for number in range(12):
        prompt = next(prompts)
        for stream in (True, False):
            ask(cluster.addresses["proxy"], prompt, max_tokens=4, stream=stream)
        if number == 6:
            cluster.processes["mortal"].kill()
    time.sleep(2)
    empty = []
    for board in BOARDS.values():
        print(f"\n{board['title']}")
        for panel in board["panels"]:
            print(f"  {panel['title']} ({panel['fieldConfig']['defaults']['unit']})")
            for target in panel["targets"]:
                samples = shown(prometheus, target["expr"])
                empty += [] if samples else [f"{board['title']}, {panel['title']}: {target['expr']}"]
                for sample in samples:
                    print(f"    {legend(target, sample):60} {sample.value:>16.6g}")
    assert not empty, "\n".join(empty)


def shown(prometheus: Prometheus, expr: str) -> list[Sample]:
    """What a panel would draw."""
    for variable, value in MEANT.items():
        expr = expr.replace(variable, value)
    until = time.monotonic() + FOUND_S
    while not (found := [sample for sample in prometheus.query(expr) if math.isfinite(sample.value)]):
        if time.monotonic() > until:
            break
        time.sleep(0.2)
    return found


def legend(target: dict[str, Any], sample: Sample) -> str:
    if not target["legendFormat"]:
        return " ".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
    text: str = target["legendFormat"]
    for name, value in sample.labels.items():
        text = text.replace("{{" + name + "}}", value)
    return text
