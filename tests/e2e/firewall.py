"""Two hosts and a firewall between them that lets only the master's port through: a program, in namespaces of its own.

Host a has the master and node-a, host b has node-b and a client; this program is the router. Each node has a tmpfs that
nobody else can see, so that bytes go by the engine or not at all. Prints "held" where everything was as it should be.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from demo.cluster import Cluster
from demo.traffic import metric

A, B = "198.18.1.10", "198.18.2.10"  # RFC 2544: for tests, and routed nowhere
PORT = 50001
ROOT = Path(__file__).resolve().parents[2]
MOUNTED = 'mkdir -p "$0" && mount -t tmpfs none "$0" && exec "$@"'
CLIENT = """
import json, sys, time, larder
store, answers = larder.connect(sys.argv[1], transports=sys.argv[2].split(","), timeout_s=5), []
for what, key in json.loads(sys.argv[3]):
    begun = time.monotonic()
    try:
        said = store.put(key, bytes(1 << 20), copies=2).copies if what == "put" else len(store.get(key))
    except larder.LarderError as error:
        said = f"{type(error).__mro__[0].__name__} {isinstance(error, larder.Unavailable)} {error}"
    answers.append([said, time.monotonic() - begun])
store.close()
print(json.dumps(answers))
"""


def run(*argv: str) -> None:
    subprocess.run(argv, check=True)


def make_hosts() -> None:
    run("mount", "-t", "tmpfs", "none", "/run")
    run("ip", "link", "set", "lo", "up")
    for name, number in (("a", 1), ("b", 2)):
        run("ip", "netns", "add", name)
        run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "addr", "add", f"198.18.{number}.1/24", "dev", f"to-{name}")
        run("ip", "link", "set", f"to-{name}", "up")
        run("ip", "-n", name, "addr", "add", f"198.18.{number}.10/24", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", name, "route", "add", "default", "via", f"198.18.{number}.1")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for pref, which in ((10, "dport"), (11, "sport")):
        run("ip", "rule", "add", "pref", str(pref), "ipproto", "tcp", which, str(PORT), "lookup", "main")
    for name in "ab":
        run("ip", "rule", "add", "pref", "20", "iif", f"to-{name}", "blackhole")


def open_firewall() -> None:
    for name in "ab":
        run("ip", "rule", "del", "pref", "20", "iif", f"to-{name}")


def within(name: str) -> list[str]:
    host = "b" if name.endswith("b") else "a"
    mount = ["unshare", "--mount", "sh", "-c", MOUNTED, f"/run/pools-{name}"] if name.startswith("node") else []
    return ["nsenter", f"--net=/run/netns/{host}", "--", *mount]


def call(cluster: Cluster, where: str, transports: str, *calls: tuple[str, str]) -> list[tuple[object, float]]:
    """What became of each call, and how long it took."""
    argv = [*within(where), sys.executable, "-c", CLIENT, cluster.master, transports, json.dumps(calls)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    answers: list[tuple[object, float]] = json.loads(done.stdout)
    return answers


def start_node(cluster: Cluster, name: str, address: str) -> None:
    flags = ("--host", address, "--pool-dir", f"/run/pools-{name}")
    cluster.start_node(name, *flags, dram="64MB")
    cluster.wait_ready()


def check_errors(cluster: Cluster) -> None:
    """Only node-a is there, and its engine's port is shut: the client is told which, and why."""
    ((put, _),) = call(cluster, "b", "engine", ("put", "refused"))
    assert isinstance(put, str), put
    assert put.startswith("WriteFailed False "), put
    assert "node-a" in put, put
    assert f"{A}:" in put, put
    assert "timed out" in put, put
    assert "put it again" not in put, put


def check_object(cluster: Cluster) -> None:
    """Both nodes are there; an object with two copies gets one, on the side of its writer."""
    ((put, took_s),) = call(cluster, "node-a", "engine", ("put", "kept"))
    assert put == 1, put
    assert took_s < 5, took_s
    answers = call(cluster, "b", "engine", ("get", "kept"), ("get", "kept"))
    for get, took_s in answers:
        assert isinstance(get, str), get
        assert get.startswith("Unreachable True "), get
        assert f"node-a at {A}:" in get, get
        assert "timed out" in get, get
        assert "DataLost" not in get, get
        assert took_s < 5, took_s


def check_back_off(cluster: Cluster) -> None:
    time.sleep(5)
    failed = metric(cluster.metrics["master"], "larder_master_failed_repairs_total")
    assert 2 <= failed <= 8, failed
    log = cluster.processes["master"].output()
    lines = [line for line in log.splitlines() if "no copy gets from node node-a" in line]
    assert 1 <= len(lines) <= failed, log
    assert f"node-a ({A}:" in lines[0], lines
    assert "timed out" in lines[0], lines


def check_healing(cluster: Cluster) -> None:
    open_firewall()
    until = time.monotonic() + 45
    while metric(cluster.metrics["master"], "larder_master_repairs_pending"):
        assert time.monotonic() < until, cluster.processes["master"].tail()
        time.sleep(0.2)
    ((get, _),) = call(cluster, "b", "engine", ("get", "kept"))
    assert get == 1 << 20, get


def main() -> None:
    make_hosts()
    with Cluster(Path(sys.argv[1]), within=within) as cluster:
        cluster.start_master("--host", A, port=PORT)
        start_node(cluster, "node-a", A)
        check_errors(cluster)
        start_node(cluster, "node-b", B)
        check_object(cluster)
        check_back_off(cluster)
        check_healing(cluster)
    print("held")


if __name__ == "__main__":
    main()
