"""Room in /dev/shm, by real processes: what clients and dead nodes leave there is given back."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import larder
import pytest

from demo.cluster import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A master, and a tmpfs for the pools that has room for one node of 40 MB."""
    with Cluster(tmp_path) as cluster:
        folder = str(cluster.pool_dir)
        mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a tmpfs here")
        cluster.start_master()
        try:
            yield cluster
        finally:
            cluster.close()
            subprocess.run(["umount", "--lazy", folder], check=True)
            Path(folder).rmdir()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_node_starts_again_while_a_client_that_is_idle_mapped_its_former_pool(cluster: Cluster, end: str) -> None:
    cluster.start_node("node-1", dram="40MB")
    cluster.wait_ready()
    with larder.connect(cluster.master, transports=("shm",)) as store:
        store.put("key", b"value")
        assert store.get("key") == b"value"
        getattr(cluster.processes["node-1"], end)()
        cluster.start_node("node-2", dram="40MB")  # another id: what a dead one left is not its own
        begun = time.monotonic()
        cluster.wait_ready()
        assert time.monotonic() - begun < 10
        said = cluster.processes["node-2"].output()
        assert ("reclaimed the pool file" in said) == (end == "kill")
        store.put("key", b"new")
        assert store.get("key") == b"new"
