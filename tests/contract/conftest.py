"""Real clusters and real engines for the contracts. Shared; who kills, freezes or fills a part has one of his own."""

import contextlib
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import larder
import pytest
from larder.testing import FakeStore

from demo.cluster import Cluster
from tests.contract.peers import Peer

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


@pytest.fixture(params=["fake", "shm", "engine"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "fake":
        with FakeStore() as fake:
            yield fake
        return
    cluster: Cluster = request.getfixturevalue("store_cluster")
    with larder.connect(cluster.master, transports=[request.param], timeout_s=20) as real:
        yield real


@contextlib.contextmanager
def _short_leases(path: Path) -> Iterator[Cluster]:
    """Leases of 3 s, two nodes of 64 MB."""
    with Cluster(path) as cluster:
        cluster.start_master("--lease-ms", "3000")
        for node in NODES:
            cluster.start_node(node, dram="64MB")
        cluster.wait_ready()
        yield cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with _short_leases(tmp_path_factory.mktemp("shared")) as cluster:
        yield cluster


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[Cluster]:
    """To be broken."""
    with _short_leases(tmp_path) as cluster:
        yield cluster


@pytest.fixture
def key() -> str:
    """One that nobody else has."""
    return uuid.uuid4().hex


@pytest.fixture(scope="session")
def pool_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="larder-", dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture(scope="session")
def shared_peer(pool_dir: Path) -> Iterator[Peer]:
    peer = Peer(pool_dir / "shared.pool")
    yield peer
    peer.close()


@pytest.fixture
def peer(pool_dir: Path) -> Iterator[Peer]:
    """For those who kill or freeze it."""
    peer = Peer(pool_dir / "own.pool")
    yield peer
    peer.close()
