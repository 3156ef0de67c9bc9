"""A real master and two real storage nodes for the contracts. Shared; who kills a part starts a cluster of his own."""

from collections.abc import Iterator

import pytest

from demo.cluster import Cluster

NODES = ("node-1", "node-2")


@pytest.fixture(scope="session")
def store_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Master and two storage nodes of 256 MB; slices of 1 MiB, so that middling objects are striped."""
    with Cluster(tmp_path_factory.mktemp("contract")) as cluster:
        cluster.start_master("--slice-bytes", "1MiB")
        for node in NODES:
            cluster.start_node(node, dram="256MB")
        cluster.wait_ready()
        yield cluster
