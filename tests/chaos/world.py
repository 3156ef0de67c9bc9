"""The cluster under test: a master, nodes and clients, each on a host of its own; and what can be read off it."""

import re
from pathlib import Path

from demo.cluster import Cluster
from demo.processes import ProcessError
from demo.traffic import metric
from tests.chaos.hosts import GATE, LOOPBACK, Hosts

ROOT = Path(__file__).resolve().parents[2]
NODES = ("node-1", "node-2", "node-3", "node-4")
DRAM_BYTES = 512_000_000  # so much that nothing has to be evicted: what is missed then was lost
DISK_BYTES = 4 * DRAM_BYTES  # clients map a dead node's file for some seconds more, and its memory stays as long
MASTER_FLAGS = ("--slice-bytes", "1MiB", "--lease-ms", "2000")
CLIENTS = {  # name -> flags
    "client-1": ("--transports", "shm,engine"),
    "client-2": ("--transports", "shm,engine", "--trusting"),
    "client-3": ("--transports", "engine"),
    "client-4": ("--transports", "engine", "--trusting"),
}
# Lines of logs that a fault explains: a peer of a transfer was lost, by the node's word and by the engine's.
EXPECTED = (r"fetch \d+ was not done: (no way to )?node", r"(^E\d{4}|ERROR stderr:) .*tcp_transport_session_impl\.h:")
TROUBLE = re.compile(r"\b(ERROR|CRITICAL)\b|Traceback|Error:|assert|panic|Fatal|Aborted|Segmentation")


class World:
    """`seed` is the values' and the clients'."""

    def __init__(self, work_dir: Path, *, seed: int) -> None:
        self.seed = seed
        self.hosts = Hosts(Path("/run/disks"))
        self.cluster = Cluster(work_dir, within=lambda name: [] if name == "master" else self.hosts.within(name))
        self.histories: list[Path] = []
        self.unexpected: list[str] = []

    def start(self) -> None:
        self.cluster.start_master("--host", GATE if self.hosts.apart else LOOPBACK, *MASTER_FLAGS)
        for name in NODES:
            if self.hosts.apart:
                self.hosts.disk(name, DISK_BYTES)
            self.start_node(name)
        self.cluster.wait_ready()
        for name in CLIENTS:
            self.start_client(name)
        self.cluster.wait_ready()

    def start_node(self, name: str, dram_bytes: int = DRAM_BYTES) -> None:
        disk = ["--pool-dir", str(self.hosts.path(name))] if self.hosts.apart else []
        self.cluster.start_node(name, "--host", self.hosts.address(name), *disk, dram=str(dram_bytes))

    def refuses_to_start(self, name: str) -> bool:
        """Whether a node on a full disk ends with a clear word and no traceback.

        It gets what its former life had as soon as clients let go of that, and no more."""
        self.start_node(name, 2 * DRAM_BYTES)
        try:
            self.cluster.wait_ready()
        except ProcessError:
            said = self.cluster.processes[name].output()
            return "does not fit" in said and "Traceback" not in said
        return False

    def start_client(self, name: str) -> None:
        life = len(self.histories) + 1
        history = self.cluster.work_dir / f"history-{life}.jsonl"
        self.histories.append(history)
        self.cluster.start_program(
            name, "python", "-m", "tests.chaos.client", "--master", self.cluster.master, "--name", name,
            "--number", str(life), "--seed", str(self.seed), "--history", str(history), *CLIENTS[name],
            ready="client ready", env={"PYTHONPATH": f"{ROOT}:{ROOT / 'clients/python'}"},
        )  # fmt: skip

    def is_whole(self) -> bool:
        """Every node attached, and every copy made again that was lost."""
        master = self.cluster.metrics["master"]
        attached = metric(master, "larder_master_nodes", state="attached")
        return attached == len(NODES) and metric(master, "larder_master_repairs_pending") == 0

    def master_metric(self, name: str) -> int:
        return int(metric(self.cluster.metrics["master"], f"larder_master_{name}"))

    def check_alive(self) -> None:
        """Notes processes that ended without being told to."""
        for name, process in self.cluster.processes.items():
            if not process.running():
                self.unexpected.append(f"{name} has ended:\n{process.tail()}")

    def close(self) -> None:
        """Ends everything, and notes what should not stand in logs and exit statuses."""
        statuses = self.cluster.close()
        self.unexpected += [f"{name} ended with status {status}" for name, status in statuses.items() if status]
        for log in sorted(self.cluster.work_dir.glob("*.log")):
            for line in log.read_text(errors="replace").splitlines():
                if TROUBLE.search(line) and not any(re.search(expected, line) for expected in EXPECTED):
                    self.unexpected.append(f"{log.name}: {line}")
