"""`larder top` against a real cluster: rates of what happens meanwhile, restarts, and its end."""

import json
import os
import signal
import subprocess
import threading

from larder import connect

from demo.cluster import Cluster, free_port
from tests.contract.commands import TOOL, larder


def test_it_tells_what_happens_between_two_looks(store_cluster: Cluster, key: str) -> None:
    at, begun, stop = store_cluster.master, threading.Event(), threading.Event()

    def work() -> None:
        with connect(at) as store:
            number = 0
            while not stop.is_set():
                store.put(f"{key}-{number}", b"x" * 1_000)
                store.match([f"{key}-{number}", f"{key}-none"])
                store.get(f"{key}-{number}")
                number += 1
                begun.set()
                stop.wait(0.01)

    working = threading.Thread(target=work)
    working.start()
    try:
        assert begun.wait(60)
        done = larder("--master", at, "--format", "json", "top", "--interval", "0.5", "--count", "4")
    finally:
        stop.set()
        working.join()
    ticks = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, len(ticks)) == (0, 4)
    for tick in ticks:
        assert tick["seconds"] >= 0.5
        assert 0 <= tick["fill"] <= 1
        assert sorted(node["node_id"] for node in tick["nodes"]) == ["node-1", "node-2"]
    busy = max(ticks, key=lambda tick: tick["put_objects_per_s"])
    assert busy["put_objects_per_s"] > 0
    assert abs(busy["put_bytes_per_s"] - 1_000 * busy["put_objects_per_s"]) < 0.02 * busy["put_bytes_per_s"]
    assert busy["get_hit_rate"] == 1
    assert busy["get_bytes_per_s"] > 0
    assert abs(busy["match_hit_rate"] - 0.5) < 0.01


def test_a_pipe_gets_a_line_each_time(store_cluster: Cluster) -> None:
    done = larder("--master", store_cluster.master, "top", "--interval", "0.1", "--count", "2")
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 2
    assert all("2 of 2 nodes" in line and "\x1b" not in line for line in lines)


def test_it_goes_on_over_a_restart_of_the_master_and_ends_with_ctrl_c(fragile: Cluster) -> None:
    argv = [TOOL, "--master", fragile.master, "--timeout", "0.5", "--format", "json", "top", "--interval", "0.2"]
    port = int(fragile.master.rpartition(":")[2])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as watching:
        assert watching.stdout is not None
        assert "fill" in json.loads(watching.stdout.readline())
        fragile.processes["master"].stop()
        while "error" not in json.loads(watching.stdout.readline()):
            pass
        fragile.start_master("--lease-ms", "3000", port=port)
        while "fill" not in json.loads(watching.stdout.readline()):
            pass
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=60)
    assert (watching.returncode, said) == (0, "")


def test_where_no_master_answers_it_ends_at_once() -> None:
    refused = larder("--master", f"127.0.0.1:{free_port()}", "--timeout", "0.3", "top")
    assert (refused.returncode, refused.stderr.count(b"\n")) == (1, 1)
