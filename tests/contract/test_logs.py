"""What real processes write: JSON throughout where that is asked for, and no errors that are none."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from demo.cluster import Cluster
from demo.processes import Process

PUT = """
import larder, sys
with larder.connect(sys.argv[1], transports=["engine"]) as store:
    store.put("key", b"data")
    assert store.get("key") == b"data"
"""


class JsonCluster(Cluster):
    """Finds the ready lines in the objects they stand in."""

    def _when_ready(self, process: Process, pattern: str) -> None:
        super()._when_ready(process, rf'{{.*"message": "{pattern}')


def test_all_lines_of_a_cluster_are_json_and_its_engines_say_nothing(tmp_path: Path) -> None:
    with JsonCluster(tmp_path) as cluster:
        cluster.start_master("--log-format", "json")
        for node in ("node-1", "node-2"):
            cluster.start_node(node, "--log-format", "json", dram="64MB")
        cluster.wait_ready()
        done = subprocess.run(
            [sys.executable, "-c", PUT, cluster.master], capture_output=True, text=True, timeout=60, check=True
        )
        assert (done.stdout, done.stderr) == ("", ""), "a client's engine is as quiet"
        cluster.processes["node-1"].stop()
        cluster.processes["node-2"].kill()
        ended, until = "the stream of node node-2 (", time.monotonic() + 10
        while ended not in cluster.processes["master"].output():
            assert time.monotonic() < until
            time.sleep(0.05)
        processes = dict(cluster.processes)
        assert processes["master"].stop() == 0
    for name, process in processes.items():
        lines = [json.loads(line) for line in process.output().splitlines()]
        service = "master" if name == "master" else "storage-node"
        assert {line["service"] for line in lines} == {service}
        assert any(f"{service} ready: " in line["message"] for line in lines)
        assert not any(line["level"] == "error" for line in lines), lines
        assert not any("segment descriptor" in line["message"] for line in lines)
    said = [json.loads(line)["message"] for line in processes["master"].output().splitlines()]
    assert any(line.startswith("the stream of node node-1 (") and line.endswith("ends: it left") for line in said)
    assert any(line.startswith("the stream of node node-2 (") and "broke" in line for line in said)
    assert "node node-1 leaves" in said


def test_a_node_that_is_killed_by_a_fault_leaves_its_trace(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_master()
        node = cluster.start_node("node-1", dram="64MB")
        cluster.wait_ready()
        os.kill(node.pid, signal.SIGSEGV)
        node.wait(10)
        assert "Fatal Python error: Segmentation fault" in node.output()
