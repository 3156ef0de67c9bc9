"""Real processes for the end-to-end tests: a store by itself (fast), and one with vLLM engines (a minute to start).

Both are shared; a test that kills a part starts it again before it returns. Ports are free ones, pools and logs are the
cluster's own, and everything ends with the fixture.
"""

from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Cluster]:
    """Two storage nodes, a plain engine, a prefill engine that puts two copies, two decode engines, and the proxy.

    The decode engine `trusting` does not verify checksums.
    """
    with Cluster(tmp_path_factory.mktemp("engines")) as cluster:
        cluster.start_master()
        for node in NODES:
            cluster.start_node(node)
        cluster.start_engine("plain", model)
        cluster.start_engine("prefill", model, kv_role="kv_producer", extra_config={"copies": 2})
        cluster.start_engine("decode", model, kv_role="kv_consumer")
        cluster.start_engine("trusting", model, kv_role="kv_consumer", extra_config={"verify": False})
        cluster.wait_ready()
        cluster.start_proxy(prefill=["prefill"], decode=["decode"])
        cluster.wait_ready()
        yield cluster
