"""Every process on a host of its own: a network namespace each, joined by a bridge, with a sized tmpfs for its pool.

All of it lives in namespaces of this run (`enter` re-executes the program in them), so that nothing is left behind and
nobody outside can be reached. A cut takes a host's link down: packets vanish, and no socket is told. Where the kernel
allows no namespaces there are no cuts and no full disks, and the run says so.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.apart import NAMESPACES

INSIDE = "LARDER_TEST_NAMESPACE"
PREFIX = "198.18.0."  # RFC 2544: for tests, and routed nowhere
GATE = f"{PREFIX}1"  # this program's own address
LOOPBACK = "127.0.0.1"


def enter(argv: Sequence[str]) -> None:
    """Goes on as the same program in new namespaces, where that is possible. Returns where it is not, or is done."""
    if INSIDE in os.environ or shutil.which("unshare") is None or shutil.which("ip") is None:
        return
    if subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0:
        os.execvpe(NAMESPACES[0], [*NAMESPACES, *argv], os.environ | {INSIDE: "1"})  # noqa: S606  (no shell on purpose)


class Hosts:
    """The hosts by name, made when first asked for."""

    def __init__(self, disks: Path) -> None:
        self.apart = os.environ.pop(INSIDE, "") == "1"
        self._disks = disks
        self._numbers: dict[str, int] = {}
        if self.apart:
            _run("mount", "-t", "tmpfs", "none", "/run")
            disks.mkdir()
            _run("ip", "link", "set", "lo", "up")
            _run("ip", "link", "add", "bridge", "type", "bridge")
            _run("ip", "addr", "add", f"{GATE}/24", "dev", "bridge")
            _run("ip", "link", "set", "bridge", "up")

    def address(self, name: str) -> str:
        if not self.apart:
            return LOOPBACK
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._numbers) + 10
            self._make(name, f"{PREFIX}{number}")
        return f"{PREFIX}{number}"

    def within(self, name: str) -> list[str]:
        """What a process is started through to be on that host."""
        if not self.apart:
            return []
        self.address(name)
        return ["nsenter", f"--net=/run/netns/{name}", "--"]

    def cut(self, name: str) -> None:
        _run("ip", "link", "set", self._link(name), "down")

    def mend(self, name: str) -> None:
        _run("ip", "link", "set", self._link(name), "up")

    def disk(self, name: str, size_bytes: int) -> Path:
        """A new tmpfs of that size."""
        path = self.path(name)
        path.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(path))
        return path

    def path(self, name: str) -> Path:
        return self._disks / name

    def fill(self, name: str) -> None:
        """Takes what is free of that host's tmpfs."""
        path = self.path(name)
        free = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
        with (path / "filler").open("wb") as file:
            if free:
                os.posix_fallocate(file.fileno(), 0, free)

    def drain(self, name: str) -> None:
        (self.path(name) / "filler").unlink()

    def _link(self, name: str) -> str:
        return f"to-{self._numbers[name]}"

    def _make(self, name: str, address: str) -> None:
        link = self._link(name)
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", link, "master", "bridge", "up")
        _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        _run("ip", "-n", name, "link", "set", "eth0", "up")
        _run("ip", "-n", name, "link", "set", "lo", "up")


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(argv)}: {done.stderr.strip()}")
