"""Two hosts, by IPv4 or by IPv6, and a node that was not told its address: a program, in namespaces of its own.

Host a has the master and a client, host b the node. The client reads and writes by the engine. Prints "held" where
everything was as it should be.
"""

import subprocess
import sys
from pathlib import Path

from demo.cluster import START_DEADLINE_S, Cluster

MASTERS = {"4": "198.18.3.1", "6": "fd00:18::1"}
NODES = {"4": "198.18.3.2", "6": "fd00:18::2"}
BIN = Path(sys.prefix) / "bin"
NOT_ITS_OWN = "198.18.3.99"
CLIENT = """
import sys, larder
with larder.connect(sys.argv[1], transports=("engine",), timeout_s=20) as store:
    store.put("key", b"value" * 100_000)
    assert store.get("key") == b"value" * 100_000
"""


def run(*argv: str) -> None:
    subprocess.run(argv, check=True)


def make_hosts() -> None:
    run("mount", "-t", "tmpfs", "none", "/run")
    for name in "ab":
        run("ip", "netns", "add", name)
    run("ip", "link", "add", "veth-a", "netns", "a", "type", "veth", "peer", "name", "veth-b", "netns", "b")
    for name, addresses in (("a", MASTERS), ("b", NODES)):
        run("ip", "-n", name, "addr", "add", f"{addresses['4']}/24", "dev", f"veth-{name}")
        run("ip", "-n", name, "addr", "add", f"{addresses['6']}/64", "dev", f"veth-{name}", "nodad")
        run("ip", "-n", name, "link", "set", f"veth-{name}", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")


def within(name: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{'b' if name.startswith('node') else 'a'}", "--"]


def check_refused(cluster: Cluster, flag: str, address: str) -> None:
    argv = [*within("node"), str(BIN / "storage-node"), "--master", cluster.master, "--pool-dir", str(cluster.pool_dir)]
    node = subprocess.run([*argv, flag, address], capture_output=True, text=True, check=False, timeout=60)
    assert node.returncode == 1
    said = node.stderr.splitlines()[-1]
    assert said.startswith(f"storage-node: {flag} {address}: the master at {cluster.master} is on another host"), said
    assert "--advertise" in said


def check(cluster: Cluster, family: str) -> None:
    cluster.start_master("--host", MASTERS[family])
    assert cluster.master.startswith("[fd00:18::1]:" if family == "6" else "198.18.3.1:"), cluster.master
    check_refused(cluster, "--host", "127.0.0.1")
    check_refused(cluster, "--advertise", "::1")

    node = cluster.start_node("node-1", dram="16MB")
    cluster.wait_ready()
    host = f"[{NODES[family]}]" if family == "6" else NODES[family]
    assert f", engine {host}:" in node.output(), node.output()
    run(*within("a"), sys.executable, "-c", CLIENT, cluster.master)
    run(*within("a"), str(BIN / "larder"), "--master", cluster.master, "status")
    master = cluster.processes["master"]
    assert "tells clients to reach it" not in master.output(), master.output()

    cluster.start_node("node-astray", "--advertise", NOT_ITS_OWN, dram="16MB")
    cluster.wait_ready()
    warned = rf".*node node-astray tells clients to reach it at {NOT_ITS_OWN}, but connects from {NODES[family]}:"
    master.wait_line(warned, START_DEADLINE_S)


def main() -> None:
    make_hosts()
    for family in sys.argv[2:]:
        with Cluster(Path(sys.argv[1]) / family, within=within) as cluster:
            check(cluster, family)
    print("held")


if __name__ == "__main__":
    main()
