"""Addresses that nobody typed, and IPv6 ones: of master, node, client, command line and proxy, by real processes."""

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import larder
import pytest

from demo.cluster import Cluster, answers
from tests.apart import run_apart

LOOPBACK = "::1"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind((LOOPBACK, 0))
    except OSError:
        return False
    return True


@pytest.mark.timeout(180)
@pytest.mark.parametrize("family", ["4", pytest.param("6", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6"))])
def test_a_node_on_another_host_is_reached_though_nobody_told_its_address(tmp_path: Path, family: str) -> None:
    run_apart("tests.e2e.two_hosts", tmp_path, 150, family)


def test_a_proxy_for_the_world_outside_is_not_asked_for_a_master(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as shut:  # bound and not listening: whoever connects is refused
        shut.bind(("127.0.0.1", 0))
        for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{shut.getsockname()[1]}")
        with Cluster(tmp_path) as cluster:
            cluster.start_master()
            cluster.start_node("node-1", dram="16MB")
            cluster.wait_ready()
            with larder.connect(cluster.master) as store:
                store.put("key", b"value")
                assert store.get("key") == b"value"
            larder_command = Path(sys.prefix) / "bin" / "larder"
            argv = [larder_command, "status", "--master", cluster.master, "--format", "json"]
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["masters"][0]["trouble"] == ""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        cluster.start_master("--host", LOOPBACK)
        cluster.start_node("node-1", "--host", LOOPBACK, dram="16MB")
        cluster.wait_ready()
        yield cluster


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6")
def test_everything_of_a_store_works_by_ipv6(cluster: Cluster) -> None:
    assert cluster.master.startswith("[::1]:")
    value = b"value" * 100_000
    with larder.connect(cluster.master, transports=("shm",)) as store:
        store.put("key", value)
        assert store.get("key") == value
    by_engine = "import larder, sys; s = larder.connect(sys.argv[1], transports=('engine',)); print(len(s.get('key')))"
    argv = [
        sys.executable,
        "-c",
        by_engine,
        cluster.master,
    ]  # what a process's engine speaks is fixed when it is loaded
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == f"{len(value)}\n", done.stderr
    argv = [str(Path(sys.prefix) / "bin" / "larder"), "--master", cluster.master, "status"]
    assert "node-1" in subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    for name in ("master", "node-1"):
        assert cluster.metrics[name].startswith("[::1]:")
        assert answers(cluster.metrics[name], "/ready")


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6")
def test_the_proxy_and_its_engines_speak_ipv6(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        engines = []
        for name in ("prefill", "decode"):
            process = cluster.start_program(
                name, "python", "-m", "tests.e2e.http_engine", "--host", LOOPBACK, "--port", "0", ready="engine ready"
            )
            engines.append(process)
        cluster.wait_ready()
        urls = [each.wait_line(r"engine ready: (?P<address>\S+)", 30)["address"] for each in engines]
        assert all(url.startswith("[::1]:") for url in urls)
        flags = ["--host", LOOPBACK, "--port", "0", "--model", "tiny", "--prefill", urls[0], "--decode", urls[1]]
        ready = r"proxy ready: http://(?P<address>\S+)"
        proxy = cluster.start_program("proxy", "proxy", *flags, ready=ready)
        cluster.wait_ready()
        connection = http.client.HTTPConnection(proxy.wait_line(ready, 30)["address"], timeout=30)
        body = json.dumps({"model": "tiny", "prompt": "a b c", "max_tokens": 4})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        assert json.loads(answer.read())["choices"]
        connection.close()
