"""Real nodes that have one id, or none given: who was there first stays, and who comes again need not wait."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import larder
import pytest

from demo.cluster import START_DEADLINE_S, Cluster

HEALTHY_S = 5.0  # far less than the 30 s after which a silent node is given up


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        cluster.start_master()
        yield cluster


def start_double(cluster: Cluster, name: str, *flags: str) -> None:
    """A node with the id node-1 and a pool folder of its own, as on another host."""
    folder = cluster.pool_dir / name
    folder.mkdir()
    cluster.start_program(
        name, "storage-node", "--master", cluster.master, "--node-id", "node-1", "--dram", "32MB",
        "--pool-dir", str(folder), "--metrics-port", "0", *flags, ready="storage-node ready",
    )  # fmt: skip


def test_a_second_node_of_an_id_ends_and_says_who_has_it_and_the_first_one_loses_nothing(cluster: Cluster) -> None:
    first = cluster.start_node("node-1", dram="32MB")
    cluster.wait_ready()
    with larder.connect(cluster.master) as store:
        store.put("key", b"value" * 1000)
        start_double(cluster, "double")
        double = cluster.processes["double"]
        assert double.wait(START_DEADLINE_S) == 1
        last = double.tail(1)
        where = r"node id node-1 belongs to a storage node on \S+ \(127\.0\.0\.1\)"
        assert re.fullmatch(f"storage-node: {where}: give another --node-id", last)
        assert first.running()
        assert store.get("key") == b"value" * 1000
        assert "lost" not in first.output()


@pytest.mark.parametrize("end", ["kill", "pause"])
def test_who_follows_a_node_that_died_or_froze_is_attached_at_once(cluster: Cluster, end: str) -> None:
    cluster.start_node("node-1", dram="32MB")
    cluster.wait_ready()
    getattr(cluster.processes["node-1"], end)()
    start_double(cluster, "successor")
    cluster.wait_ready()
    with larder.connect(cluster.master) as store:
        store.put("key", b"value")
        assert store.get("key") == b"value"
    assert cluster.processes["successor"].age_s < HEALTHY_S


def test_nodes_without_a_given_id_have_different_ones_that_outlive_a_restart(cluster: Cluster) -> None:
    flags = ["--master", cluster.master, "--dram", "16MB", "--pool-dir", str(cluster.pool_dir), "--metrics-port", "0"]
    ready = r"storage-node ready: node (?P<id>\S+),"

    def start(name: str) -> str:
        cluster.start_program(name, "storage-node", *flags, ready=ready)
        return cluster.processes[name].wait_line(ready, START_DEADLINE_S)["id"]

    first, second = start("first"), start("second")
    assert second == f"{first}-2"
    elsewhere = cluster.pool_dir / "elsewhere"
    elsewhere.mkdir()
    flags[flags.index("--pool-dir") + 1] = str(elsewhere)
    assert not start("third").startswith(first)
    flags[flags.index("--pool-dir") + 1] = str(cluster.pool_dir)
    cluster.processes["first"].kill()
    begun = time.monotonic()
    assert start("first") == first
    assert time.monotonic() - begun < HEALTHY_S
