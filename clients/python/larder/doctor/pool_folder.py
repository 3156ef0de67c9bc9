"""The folder of the pools (/dev/shm unless told otherwise): whether a node's pool fits there, and what lies there.

Looks only. Whether a pool file's owner lives is told by its lock; that is tried under the folder's own lock, which a
node that starts takes first: so none is disturbed.
"""

import fcntl
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from larder.doctor.finding import Finding, Part
from larder.doctor.machine import meminfo
from larder.pool_file import HEADER_BYTES, MAGIC
from larder.words import counted

PART: Final = Part("pool folder")
PATTERN: Final = "larder-*.pool"
DOCKER_BYTES: Final = 64 * 2**20
PAGES_MATTER_BYTES: Final = 64 * 2**30
"""From there on the page tables for small pages take more than 128 MiB in every process that maps the pools."""
SHOWN_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Mount:
    """The file system of a folder."""

    point: str
    kind: str
    options: str
    total_bytes: int
    free_bytes: int


def check_pool_folder(folder: Path, dram: int | None, *, root: Path = Path("/")) -> list[Finding]:
    """`dram`: the pool that a node is to have there; None: only what is there is looked at."""
    if folder.exists() and not folder.is_dir():
        return [PART.bad(str(folder), "is no folder", advice="give the folder of the pools with --pool-dir")]
    if not folder.is_dir():
        said = "there is no such folder"
        remedy = f"mkdir -p {_q(folder)} && mount -t tmpfs -o size={_gib(dram)}G tmpfs {_q(folder)}"
        return [PART.bad(str(folder), said, remedy=remedy, advice="as root")]
    mount = mount_of(folder)
    alive, dead = pools_in(folder)
    found = [_leftovers(dead)] if dead else []
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        owner = f"owned by uid {folder.stat().st_uid}"
        said = f"uid {os.geteuid()} cannot make files there ({owner}): no node of this user starts"
        remedy = f"chown {os.geteuid()} {_q(folder)}"
        found.append(PART.bad(str(folder), said, remedy=remedy, advice="as root; or give a --pool-dir of one's own"))
    if mount.kind != "tmpfs":
        said = f"on {mount.kind}, no tmpfs: pools there are as slow as its disk"
        remedy = f"mount -t tmpfs -o size={_gib(dram)}G tmpfs {_q(folder)}"
        found.append(PART.warn(str(folder), said, remedy=remedy, advice="as root, while no node runs there"))
    found += _room(folder, mount, dram, dead, root)
    found += _pages(mount, sum(alive.values()) + (dram or 0), root)
    if not found:
        pools = f", {counted(len(alive), 'pool')} of {sum(alive.values())} bytes" if alive else ""
        found.append(PART.ok(str(folder), f"{mount.kind} of {mount.total_bytes} bytes, {mount.free_bytes} free{pools}"))
    return found


def _leftovers(dead: dict[Path, int]) -> Finding:
    names = " ".join(_q(path) for path in list(dead)[:SHOWN_MAX])
    said = f"{counted(len(dead), 'pool')} of nodes that no longer run: {sum(dead.values())} bytes"
    return PART.warn("left pools", said, remedy=f"rm {names}", advice="the next node that starts there does it too")


def _room(folder: Path, mount: Mount, dram: int | None, dead: dict[Path, int], root: Path) -> Iterator[Finding]:
    wanted = (dram or 0) + HEADER_BYTES
    if dram is None:
        if mount.kind == "tmpfs" and mount.total_bytes <= DOCKER_BYTES:
            said = f"{mount.total_bytes} bytes in all: Docker's default, too small for a pool"
            yield PART.warn(str(folder), said, remedy=_grow(mount, folder, 2), advice=_docker(2))
        elif mount.kind == "tmpfs" and mount.free_bytes < 2**20:
            yield PART.warn(str(folder), "it is full: no node starts there", remedy=_grow(mount, folder, 2))
    elif mount.total_bytes and mount.total_bytes < wanted:
        said = f"{mount.total_bytes} bytes in all: a pool of {dram} bytes does not fit"
        yield PART.bad(str(folder), said, remedy=_grow(mount, folder, _gib(dram)), advice=_docker(_gib(dram)))
    elif mount.total_bytes and mount.free_bytes + sum(dead.values()) < wanted:
        held = ", ".join(f"{path.name} {size}" for path, size in _largest(folder))
        said = f"{mount.free_bytes} bytes are free, {dram} are needed" + (f"; there are {held}" if held else "")
        more = _gib(mount.total_bytes - mount.free_bytes + wanted)
        yield PART.bad(str(folder), said, remedy=_grow(mount, folder, more), advice="as root; or a smaller --dram")
    elif mount.kind == "tmpfs" and meminfo(root)["MemAvailable"] < wanted:
        available = meminfo(root)["MemAvailable"]
        smaller = max(1, available * 8 // 10 // 2**20)
        said = f"this machine has {available} bytes of memory free, the pool wants {dram}"
        yield PART.bad("memory", said, advice=f"start the node with --dram {smaller}MiB")


def _pages(mount: Mount, pools_bytes: int, root: Path) -> list[Finding]:
    if mount.kind != "tmpfs" or pools_bytes < PAGES_MATTER_BYTES or "huge=" in mount.options:
        return []
    said = (
        f"pools of {pools_bytes} bytes in pages of 4 KiB: page tables of {pools_bytes // 512} bytes in each process "
        "that maps them, and slower copies"
    )
    remedy = f"mount -o remount,huge=within_size {shlex.quote(mount.point)}"
    return [PART.warn("huge pages", said, remedy=remedy, advice="as root, before nodes start: it is for new pools")]


def _grow(mount: Mount, folder: Path, gib: int) -> str:
    if mount.kind != "tmpfs":
        return f"mount -t tmpfs -o size={gib}G tmpfs {_q(folder)}"
    return f"mount -o remount,size={gib}G {shlex.quote(mount.point)}"


def _docker(gib: int) -> str:
    return f"as root; for containers: --shm-size={gib}g or --ipc=host"


def _gib(dram: int | None) -> int:
    """So many whole GiB hold that pool."""
    return -(-((dram or 2 * 2**30) + 2**20) // 2**30)


def _q(path: Path) -> str:
    return shlex.quote(str(path))


def _largest(folder: Path) -> list[tuple[Path, int]]:
    sizes = []
    for path in folder.iterdir():
        with suppress(OSError):
            status = path.lstat()
            sizes += [(path, status.st_blocks * 512)] if stat.S_ISREG(status.st_mode) else []
    return sorted(sizes, key=lambda item: -item[1])[:3]


def mount_of(folder: Path) -> Mount:
    status, device = os.statvfs(folder), folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    sizes = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    found = Mount(str(folder), "unknown", "", *sizes)
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        rest = fields[fields.index("-") + 1 :]
        point = fields[4].replace("\\040", " ")
        if fields[2] == number and folder.resolve().is_relative_to(point):
            found = Mount(point, rest[0], rest[2] if len(rest) > 2 else "", *sizes)
    return found


def pools_in(folder: Path) -> tuple[dict[Path, int], dict[Path, int]]:
    """The pool files there with their bytes: those of running nodes, and those whose owner is gone."""
    alive: dict[Path, int] = {}
    dead: dict[Path, int] = {}
    try:
        with _quiet(folder):
            for path in sorted(folder.glob(PATTERN)):
                with suppress(OSError):
                    is_dead, size = _look_at(path)
                    (dead if is_dead else alive)[path] = size
    except OSError:
        pass  # a node is starting there this moment, or the folder is another user's
    return alive, dead


@contextmanager
def _quiet(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _look_at(path: Path) -> tuple[bool, int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or os.pread(fd, len(MAGIC), 0) != MAGIC:
            raise OSError("no pool file")
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False, status.st_blocks * 512
        return True, status.st_blocks * 512
    finally:
        os.close(fd)
