"""Hosts with only the ports between them that docs/ports.md names: a program, in namespaces of its own.

"firewall": a master, two storage nodes and a client, each on a host of its own; the router lets the master's port and
the nodes' engine ports through, and nothing else. "gateway": master and node on a host that nobody else can reach, but
for the ports that the router passes on, as Docker does for those that are published. Prints "held" where all was well.
"""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from demo.cluster import Cluster
from tests.e2e.firewall import MOUNTED, run

MASTER, METRICS, ENGINE = 50001, 9102, "18000-18009"
APART = {"master": 1, "node-1": 2, "node-2": 3, "client": 4}  # who is on which host
TOGETHER = {"master": 1, "node-1": 1, "client": 4}
GATE = "198.18.4.1"  # the router, as the client's host sees it
CLIENT = """
import sys, larder, psutil
with larder.connect(sys.argv[1], transports=("engine",), timeout_s=20, engine_ports="18100-18103") as store:
    if sys.argv[2] == "put":
        store.put("key", b"value" * 1_000_000)
    assert store.get("key") == b"value" * 1_000_000
    ports = {each.laddr.port for each in psutil.Process().net_connections("tcp") if each.status == "LISTEN"}
    assert len(ports) == 2 and ports <= set(range(18100, 18104)), ports
"""


def address(host: int) -> str:
    return f"198.18.{host}.10"


def within(places: Mapping[str, int], name: str) -> list[str]:
    """A process's host; each node has a tmpfs of its own, so that bytes go by the engine or not at all."""
    mount = ["unshare", "--mount", "sh", "-c", MOUNTED, f"/run/pools-{name}"] if name.startswith("node") else []
    return ["nsenter", f"--net=/run/netns/h{places[name]}", "--", *mount]


def make_hosts(hosts: set[int]) -> None:
    run("mount", "-t", "tmpfs", "none", "/run")
    run("ip", "link", "set", "lo", "up")
    for host in hosts:
        name, link = f"h{host}", f"to-{host}"
        run("ip", "netns", "add", name)
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "addr", "add", f"198.18.{host}.1/24", "dev", link)
        run("ip", "link", "set", link, "up")
        run("ip", "-n", name, "addr", "add", f"{address(host)}/24", "dev", "eth0")
        for own in ("eth0", "lo"):
            run("ip", "-n", name, "link", "set", own, "up")
        run("ip", "-n", name, "route", "add", "default", "via", f"198.18.{host}.1")
        run("ip", "rule", "add", "pref", "20", "iif", link, "blackhole")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def let_through(host: int, ports: str) -> None:
    """Connections to these ports of that host, and what it answers."""
    for way, side in (("to", "dport"), ("from", "sport")):
        run("ip", "rule", "add", "pref", "10", way, address(host), "ipproto", "tcp", side, ports, "lookup", "main")


def on(host: int, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    inside = ["nsenter", f"--net=/run/netns/h{host}", "--", *argv]
    return subprocess.run(inside, capture_output=True, text=True, check=check, timeout=60)


def call(master: str, what: str) -> None:
    done = on(APART["client"], sys.executable, "-c", CLIENT, master, what, check=False)
    assert done.returncode == 0, done.stderr


def reaches(host: int, address: str, port: int) -> bool:
    program = f"import socket; socket.create_connection(({address!r}, {port}), 1)"
    return on(host, sys.executable, "-c", program, check=False).returncode == 0


def listening(host: int) -> set[int]:
    return {int(line.split()[3].rpartition(":")[2]) for line in on(host, "ss", "-Hltn").stdout.splitlines()}


def start_node(cluster: Cluster, name: str, *flags: str) -> None:
    pools = ("--pool-dir", f"/run/pools-{name}", "--engine-ports", ENGINE, "--metrics-port", str(METRICS))
    cluster.start_node(name, *pools, *flags, dram="64MB")
    cluster.wait_ready()


def check_firewall(cluster: Cluster) -> None:
    make_hosts(set(APART.values()))
    let_through(APART["master"], str(MASTER))
    for node in ("node-1", "node-2"):
        let_through(APART[node], ENGINE)
    cluster.start_master("--host", address(APART["master"]), "--metrics-port", str(METRICS), port=MASTER)
    start_node(cluster, "node-1")
    call(cluster.master, "put")
    start_node(cluster, "node-2", "--host", address(APART["node-2"]))
    on(APART["client"], str(Path(sys.prefix) / "bin" / "larder"), "--master", cluster.master, "drain", "node-1")
    call(cluster.master, "get")  # from node-2, which has it from node-1
    assert listening(APART["master"]) == {MASTER, METRICS}
    engines = listening(APART["node-2"]) - {METRICS}
    assert len(engines) == 4, engines
    assert engines <= set(range(18000, 18010)), engines
    assert not reaches(APART["client"], address(APART["node-2"]), METRICS), "the firewall is none"


def check_gateway(cluster: Cluster) -> None:
    make_hosts(set(TOGETHER.values()))
    cluster.start_master("--host", "0.0.0.0", port=MASTER)  # noqa: S104
    cluster.master = f"{address(TOGETHER['master'])}:{MASTER}"
    assert not reaches(TOGETHER["client"], address(TOGETHER["master"]), MASTER), "the gateway is none"
    with passed_on([MASTER, *range(18000, 18010)]):
        start_node(cluster, "node-1", "--host", "0.0.0.0", "--advertise", GATE)  # noqa: S104
        assert f", engine {GATE}:180" in cluster.processes["node-1"].output()
        call(f"{GATE}:{MASTER}", "put")


@contextmanager
def passed_on(ports: list[int]) -> Iterator[None]:
    """Connections to these ports of the router go to the host of the master."""
    loop = asyncio.new_event_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 18):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        try:
            inner_reader, inner_writer = await asyncio.open_connection(address(TOGETHER["master"]), port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    async def serve() -> None:
        for port in ports:
            await asyncio.start_server(join, GATE, port, family=socket.AF_INET)

    loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def main() -> None:
    places, check = {"firewall": (APART, check_firewall), "gateway": (TOGETHER, check_gateway)}[sys.argv[2]]
    with Cluster(Path(sys.argv[1]), within=partial(within, places)) as cluster:
        check(cluster)
    print("held")


if __name__ == "__main__":
    main()
