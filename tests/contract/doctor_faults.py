"""Twelve faults and more, planted in turn, as a program in namespaces of its own: a set-up that goes wrong.

`larder doctor` names each, what it prints as the remedy is typed as it stands, and at the next look nothing is left of
it. Prints "held" at the end.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.cluster import START_DEADLINE_S
from demo.processes import Process, end_all

BIN = Path(sys.prefix) / "bin"
POOL = "64000000"
HERE, THERE = "198.18.5.1", "198.18.5.2"  # RFC 2544: for tests, and routed nowhere
MASTER = f"{HERE}:50001"
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Fault:
    """`kind` of its remedy: "once" is done when it ends, "state" changes the shell, "service" stays."""

    said: str
    remedy: str
    verdict: str = "bad"
    kind: str = "once"
    host: Sequence[str] = ()

    def among(self, findings: list[dict[str, Any]]) -> dict[str, Any] | None:
        for each in findings:
            if self.said in each["said"] and each["verdict"] == self.verdict:
                return each
        return None


class Scene:
    """A shell's state and what runs in the background."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.state: list[str] = []  # what was typed into the shell, and stays
        self.flags: list[str] = []
        self.running: list[Process] = []
        self.healed: list[Fault] = []

    def doctor(self) -> list[dict[str, Any]]:
        """Its findings, from the shell as it stands."""
        script = "\n".join([*self.state, f"exec larder doctor --format json {shlex.join(self.flags)}"])
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode in (0, 3), done.stderr
        findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
        assert (done.returncode == 3) == any(each["verdict"] == "bad" for each in findings)
        return findings

    def look(self, *faults: Fault) -> list[dict[str, Any]]:
        """The findings that say this, once they are all there and nothing is left of what was healed."""
        until = time.monotonic() + PATIENCE_S
        while True:
            findings = self.doctor()
            found = [each for fault in faults if (each := fault.among(findings))]
            left = [fault for fault in self.healed if fault.among(findings)]
            if len(found) == len(faults) and not left:
                return found
            assert time.monotonic() < until, f"{left} of {findings}, where {faults} are wanted"
            time.sleep(0.2)

    def heal(self, *faults: Fault) -> None:
        """Types the remedies of what was planted."""
        for fault, found in zip(faults, self.look(*faults), strict=True):
            remedy = found["remedy"]
            assert fault.remedy in remedy, remedy
            if fault.kind == "service":
                service = self.start(f"service-{len(self.healed)}", "sh", "-c", f"{remedy}\nwait")
                service.wait_line(r"(master|storage-node) ready", START_DEADLINE_S)  # each look takes seconds
            if fault.kind == "state" or remedy.startswith("export "):
                self.state.append(remedy.removesuffix("&").partition("; larder ")[0])
            if fault.kind == "once":
                subprocess.run([*fault.host, "sh", "-c", remedy], check=True, capture_output=True, timeout=60)
            self.healed.append(fault)
            print(f"{len(self.healed):2d} {fault.said} -> {remedy}", flush=True)

    def start(self, name: str, *argv: str) -> Process:
        process = Process(name, argv, log_dir=self.work_dir, env=os.environ)
        self.running.append(process)
        return process

    def close(self) -> None:
        end_all(self.running)


def run(*argv: str) -> None:
    subprocess.run(argv, check=True)


def make_hosts() -> None:
    """This host, with a small /dev/shm as in a container, and another one."""
    run("mount", "-t", "tmpfs", "none", "/run")
    run("mount", "-t", "tmpfs", "-o", "size=32M", "none", "/dev/shm")  # noqa: S108
    run("ip", "link", "set", "lo", "up")
    run("ip", "netns", "add", "there")
    run("ip", "link", "add", "veth-here", "type", "veth", "peer", "name", "veth-there", "netns", "there")
    run("ip", "addr", "add", f"{HERE}/24", "dev", "veth-here")
    run("ip", "link", "set", "veth-here", "up")
    run("ip", "-n", "there", "addr", "add", f"{THERE}/24", "dev", "veth-there")
    run("ip", "-n", "there", "link", "set", "veth-there", "up")
    run("ip", "-n", "there", "link", "set", "lo", "up")


def a_shell(scene: Scene) -> None:
    """What is wrong before there is any cluster."""
    scene.state += [f"export LARDER_CONFIG_FILE={scene.work_dir}/none.json", f"export LARDER_MASTERS={MASTER}"]
    scene.state.append("ulimit -S -n 512")
    scene.flags = ["--dram", POOL, "--pool-dir", "/run/pools"]
    scene.heal(
        Fault("where no file is", "unset LARDER_CONFIG_FILE", kind="state"),
        Fault("is LARDER_MASTER meant", "export LARDER_MASTER=", "warn", kind="state"),
        Fault("run out of descriptors", "ulimit -n ", kind="state"),
        Fault("there is no such folder", "mkdir -p /run/pools"),
    )
    config = scene.work_dir / "larder.json"
    config.write_text(json.dumps({"master": "127.0.0.1:50009"}))
    scene.state.append(f"export LARDER_CONFIG_FILE={config}")
    scene.heal(Fault("who reads the file only is elsewhere", "unset LARDER_MASTER", kind="state"))
    scene.state.append(f"unset LARDER_CONFIG_FILE; export LARDER_MASTER={MASTER}")
    scene.flags = ["--dram", POOL]
    scene.heal(Fault("does not fit", "mount -o remount,size="))


def a_cluster(scene: Scene) -> None:
    """From nothing to a node that serves."""
    squatter = scene.start("squatter", sys.executable, "-m", "http.server", "--bind", HERE, "50001")
    squatter.wait_line("Serving HTTP", START_DEADLINE_S)
    elsewhere = f"larder master --port 50002 --host {HERE} &"
    scene.heal(Fault(f"process {squatter.pid} (python", elsewhere, kind="service"))
    scene.look()
    scene.running[-1].stop()
    scene.state.pop()
    squatter.stop()
    scene.heal(Fault("no master listens there", f"larder master --port 50001 --host {HERE}", kind="service"))
    scene.heal(Fault("no storage node is attached", f"larder node --dram {POOL}", kind="service"))


def a_node_in_trouble(scene: Scene) -> None:
    name = scene.look(Fault("by shared memory", "", "ok"))[0]["looked_at"].removeprefix("node ")
    members = scene.running[-1].members()
    pid = next(pid for pid in members if b"python" in Path(f"/proc/{pid}/cmdline").read_bytes())
    run("larder", "--master", MASTER, "put", "key", __file__)
    os.kill(pid, signal.SIGSTOP)
    dead = scene.start("dead", "storage-node", *_flags("dead", "9112"))
    dead.wait_line("storage-node ready", START_DEADLINE_S)
    dead.kill()
    scene.heal(Fault("is stopped", f"kill -CONT {pid}"), Fault("of nodes that no longer run", "rm /dev/shm/", "warn"))
    scene.look()
    run("larder", "--master", MASTER, "drain", name, "--no-wait")
    scene.heal(Fault("is being drained", f"drain {name} --cancel", "warn"))


def another_host(scene: Scene) -> None:
    """With a tmpfs that nobody else sees, and a firewall."""
    inside = ("nsenter", "--net=/run/netns/there", "--")
    run(*inside, "iptables", "-A", "INPUT", "-p", "tcp", "-m", "multiport", "--dports", "15000:17000", "-j", "DROP")
    mounted = 'mkdir -p /run/far && mount -t tmpfs none /run/far && exec "$@"'
    apart = [*inside, "unshare", "--mount", "sh", "-c", mounted, "sh"]
    far = scene.start("far", *apart, str(BIN / "storage-node"), *_flags("far", "9113"), "--pool-dir", "/run/far")
    far.wait_line("storage-node ready", START_DEADLINE_S)
    scene.heal(Fault("a firewall drops it", "--dport 15000:17000 -j ACCEPT", host=inside))
    (far_now,) = scene.look(Fault("by the engine at", "", "warn"))
    assert "is not there from here" in far_now["said"]


def _flags(name: str, metrics: str) -> list[str]:
    return ["--master", MASTER, "--node-id", name, "--dram", POOL, "--metrics-port", metrics]


def main() -> None:
    os.environ["PATH"] = f"{BIN}:{os.environ['PATH']}"
    work_dir = Path(sys.argv[1])
    work_dir.mkdir(parents=True)
    make_hosts()
    scene = Scene(work_dir)
    with ExitStack() as ending:
        ending.callback(scene.close)
        a_shell(scene)
        a_cluster(scene)
        a_node_in_trouble(scene)
        if shutil.which("iptables"):
            another_host(scene)
    assert len(scene.healed) >= 12, scene.healed
    print("held")


if __name__ == "__main__":
    main()
