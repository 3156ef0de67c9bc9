"""The folder of pools, which nodes share: what dead nodes left there, and who takes up room.

A pool file's lock tells whether its owner lives, in whatever container: locked files are never touched, and neither are
files that do not begin like a pool file. A file gets its header after its lock, so that a live node's file never looks
dead. A deleted file takes up room until nobody maps it any more.
"""

import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from larder.errors import LarderError
from larder.pool_file import MAGIC

from services.storage_node.memory_limit import narrowest

logger = logging.getLogger(__name__)

PREFIX: Final = "larder-"
SUFFIX: Final = ".pool"
_TURN_S: Final = 10.0  # for another node to look through the folder, which takes milliseconds
_SHOWN_MAX: Final = 8


class PoolError(LarderError):
    """The pool cannot be created; the message says what is in the way."""

    remedy = "see --dram, --pool-dir and --node-id"


@contextmanager
def turn(pool_dir: Path) -> Iterator[None]:
    """Held by one node at a time, while it creates its file or looks at those of others. Raises PoolError."""
    try:
        fd = os.open(pool_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PoolError(f"cannot use the pool folder {pool_dir}: {error.strerror}") from error
    try:
        deadline = time.monotonic() + _TURN_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise PoolError(f"another process keeps the pool folder {pool_dir} locked") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def begins_as_pool(fd: int) -> bool:
    return os.pread(fd, len(MAGIC), 0) == MAGIC


def reclaim(pool_dir: Path, own: Path) -> None:
    """Removes the pool files of dead nodes, whatever their ids; logs those and all others except `own`."""
    for path in sorted(pool_dir.glob(f"{PREFIX}*")):
        if path != own:
            try:
                _look_at(path)
            except OSError as error:
                logger.warning("leaving the file %s alone: %s", path, error.strerror)


def _look_at(path: Path) -> None:
    if not stat.S_ISREG(path.lstat().st_mode):
        return
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not begins_as_pool(file.fileno()):
            logger.warning("leaving the file %s alone: it is not a pool file", path)
            return
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("the pool file %s (%d bytes) belongs to a running storage node", path, status.st_size)
            return
        if os.path.samestat(status, path.lstat()):
            path.unlink()
            logger.warning("reclaimed the pool file %s of a dead storage node: %d bytes", path, status.st_blocks * 512)


# ---- room ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that maps deleted pool files."""

    pid: int
    name: str
    size_bytes: int


def holders(device: int) -> list[Holder]:
    """The other processes that hold deleted pool files of this file system, as far as visible; the largest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError):
                size_bytes = sum(_removed_pools(entry, device).values())
                if size_bytes:
                    name = (entry / "comm").read_text(encoding="utf-8", errors="replace").strip()
                    found.append(Holder(int(entry.name), name, size_bytes))
    return sorted(found, key=lambda holder: -holder.size_bytes)


def _removed_pools(process: Path, device: int) -> dict[int, int]:
    """Inode -> bytes."""
    sizes: dict[int, int] = {}
    for line in (process / "maps").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or not _is_removed_pool(fields[5]):
            continue
        start, end = (int(part, 16) for part in fields[0].split("-"))
        major, minor = (int(part, 16) for part in fields[3].split(":"))
        if os.makedev(major, minor) == device:
            sizes[int(fields[4])] = sizes.get(int(fields[4]), 0) + end - start
    for fd in (process / "fd").iterdir():
        with suppress(OSError):
            if _is_removed_pool(os.readlink(fd)):
                status = fd.stat()
                if status.st_dev == device:
                    sizes[status.st_ino] = status.st_blocks * 512
    return sizes


def _is_removed_pool(name: str) -> bool:
    return f"/{PREFIX}" in name and name.endswith(" (deleted)")


def who_takes_room(own: Path, found: list[Holder]) -> str:
    """For people: what takes up the room that this pool file lacks."""
    said = [f"process {each.pid} ({each.name}) maps {each.size_bytes} bytes of deleted pools" for each in found]
    for path in sorted(own.parent.glob(f"{PREFIX}*{SUFFIX}")):
        with suppress(OSError):
            if path != own:
                said.append(f"{path.name} takes {path.stat().st_blocks * 512} bytes")
    if len(said) > _SHOWN_MAX:
        said[_SHOWN_MAX:] = [f"and {len(said) - _SHOWN_MAX} more"]
    return "".join(f"; {each}" for each in said)


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a pool file cannot grow to its size."""

    said: str
    may_end: bool  # when others let go of what they hold
    is_shared: bool  # other pools of the folder take of the same room


def lacks_room(fd: int, wanted: int) -> Lack | None:
    """What a file that has to grow to `wanted` bytes lacks, if anything."""
    status = os.fstatvfs(fd)
    free, total = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    taken = os.fstat(fd).st_blocks * 512
    if total and wanted - taken > free:
        return Lack(f"{free} bytes are free", wanted <= total, is_shared=True)
    if is_tmpfs(fd):  # which may be larger than the machine's memory
        available, memory = memory_bytes()
        if wanted - taken > available:
            return Lack(f"{available} bytes of memory are free", wanted <= memory, is_shared=True)
        limit = narrowest()  # whoever touches a page first is charged for it
        if limit is not None and wanted - taken > limit.free_bytes:
            free, whole = limit.free_bytes, limit.all_bytes
            said = f"of the {whole} bytes of memory that this container may use, {free} are free; raise its limit"
            return Lack(f"{said} (with Docker Compose NODE_MEMORY)", wanted <= whole, is_shared=False)
    return None


def memory_bytes() -> tuple[int, int]:
    """Available, and total."""
    found = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name in ("MemAvailable", "MemTotal"):
            found[name] = int(value.split()[0]) * 1024
    if len(found) < 2:
        raise PoolError("/proc/meminfo does not say how much memory is free")
    return found["MemAvailable"], found["MemTotal"]


def is_tmpfs(fd: int) -> bool:
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if fields[2] == number:
            return fields[fields.index("-") + 1] == "tmpfs"
    return False
