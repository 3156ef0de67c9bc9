"""The DRAM pool: a named file on tmpfs, locked by the node that owns it, mapped and pre-faulted before it is announced.

What lies where in it is the index's business. One node owns a pool file at a time (flock). A file that a dead node left
is replaced by a new one with another token, never written again: a client that still maps the old one can hurt nothing
(invariant 6). The incarnation is greater than that of any file this node id left here.
"""

import asyncio
import ctypes
import errno
import fcntl
import logging
import mmap
import os
import secrets
import time
from pathlib import Path
from typing import Final

from larder.errors import LarderError
from larder.pool_file import HEADER_BYTES, TOKEN_BYTES, PoolFileError, PoolHeader
from larder.writer_locks import has_writer

from services.storage_node.core.index import Place

logger = logging.getLogger(__name__)

_STEP_BYTES: Final = 64 * 2**20
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14; not in the mmap module
_OPEN_TRIES: Final = 10


class PoolError(LarderError):
    """The pool cannot be had; the message says what is in the way."""

    remedy = "see --dram, --pool-dir and --node-id"


class PoolTaken(PoolError):
    """A running node has that file."""


class Pool:
    """An owned, mapped pool file. Made, then filled by prefault(), ended by close(), which removes the file."""

    def __init__(self, pool_dir: Path, node_id: str, capacity_bytes: int, *, wall_clock_ns: int) -> None:
        self.path = pool_dir.absolute() / f"larder-{node_id}.pool"
        self.capacity_bytes = capacity_bytes
        stale_fd = _lock(self.path, os.O_RDWR | os.O_CREAT)
        try:
            stale = _incarnation(stale_fd)
            self.header = PoolHeader(capacity_bytes, secrets.token_bytes(TOKEN_BYTES), max(wall_clock_ns, stale + 1))
            self._fd = self._replace()
        finally:
            os.close(stale_fd)
        try:
            self._check_space()
            os.ftruncate(self._fd, HEADER_BYTES + capacity_bytes)
            os.pwrite(self._fd, self.header.pack(), 0)
            self._memory = mmap.mmap(self._fd, HEADER_BYTES + capacity_bytes)
        except BaseException:
            self._remove()
            raise
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    @property
    def data_address(self) -> int:
        """Where the first data byte is in this process."""
        return self._base + HEADER_BYTES

    async def prefault(self, stop: asyncio.Event) -> bool:
        """Takes every page of the pool from the system; False where `stop` was set before the end."""
        total = HEADER_BYTES + self.capacity_bytes
        begun = time.monotonic()
        told = 0
        for start in range(0, total, _STEP_BYTES):
            if stop.is_set():
                return False
            length = min(_STEP_BYTES, total - start)
            await asyncio.to_thread(self._prefault_step, start, length)
            tenths = 10 * (start + length) // total
            if tenths > told:
                told = tenths
                logger.info("pre-faulted %d %% of %s", 10 * tenths, self.path)
        seconds = time.monotonic() - begun
        logger.info("pool of %d bytes ready after %.1f s (%.1f GB/s)", total, seconds, total / 1e9 / seconds)
        return True

    def has_writer(self, place: Place) -> bool:
        """Whether a client is at work in these bytes, or was stopped while it was (see larder.writer_locks)."""
        if not 0 < place.length <= self.capacity_bytes - place.offset:
            return False  # there are no such bytes
        return has_writer(self._fd, HEADER_BYTES + place.offset, place.length)

    def close(self) -> None:
        """Unmaps and removes the file: its objects are gone. Nothing may use data_address any more."""
        self._memory.close()
        self._remove()

    def _prefault_step(self, start: int, length: int) -> None:
        try:
            os.posix_fallocate(self._fd, start, length)  # says "no space" where touching a page would be SIGBUS
        except OSError as error:
            raise self._space_error(error) from error
        libc = ctypes.CDLL(None, use_errno=True)  # and not mmap.madvise, which would hold the interpreter's lock
        address = ctypes.c_void_p(self._base + start)
        if libc.madvise(address, ctypes.c_size_t(length), _MADV_POPULATE_WRITE) and ctypes.get_errno() != errno.EINVAL:
            raise self._space_error(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))

    def _space_error(self, error: OSError) -> PoolError:
        return PoolError(f"cannot fill the pool {self.path} of {self.capacity_bytes} bytes: {error.strerror}")

    def _replace(self) -> int:
        """A new, empty, locked file in the place of what stands at the path; its descriptor."""
        temporary = self.path.with_suffix(f".{secrets.token_hex(4)}")
        fd = _lock(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.rename(temporary, self.path)
        return fd

    def _check_space(self) -> None:
        wanted = HEADER_BYTES + self.capacity_bytes
        status = os.fstatvfs(self._fd)
        free = status.f_bavail * status.f_frsize
        if wanted > free:
            raise PoolError(f"a pool of {wanted} bytes does not fit {self.path.parent}: {free} bytes are free")
        available = _memory_available_bytes()
        if wanted > available and _is_tmpfs(self._fd):  # a tmpfs may promise more than the machine has
            raise PoolError(f"a pool of {wanted} bytes does not fit this machine: {available} bytes of memory are free")

    def _remove(self) -> None:
        if _stands_at(self.path, self._fd):  # and not a file that another put there after an operator removed this one
            self.path.unlink()
        os.close(self._fd)


def _lock(path: Path, flags: int) -> int:
    """Opens and locks the file that stands at `path`, also where its owner replaces it meanwhile."""
    for _ in range(_OPEN_TRIES):
        try:
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise PoolError(f"cannot open the pool file {path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _stands_at(path, fd):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise PoolTaken(f"the pool file {path} belongs to a running storage node with the same id") from None
        os.close(fd)
    raise PoolError(f"the pool file {path} changes hands all the time: several storage nodes have the same id")


def _stands_at(path: Path, fd: int) -> bool:
    return path.exists() and os.path.samestat(os.fstat(fd), path.stat())


def _incarnation(fd: int) -> int:
    """The incarnation in the header of what stood there; 0 where that is no pool file."""
    try:
        return PoolHeader.unpack(os.pread(fd, HEADER_BYTES, 0)).incarnation
    except PoolFileError:
        return 0


def _memory_available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise PoolError("/proc/meminfo does not say how much memory is free")


def _is_tmpfs(fd: int) -> bool:
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        if fields[2] == number:
            return fields[fields.index("-") + 1] == "tmpfs"
    return False
