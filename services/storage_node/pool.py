"""The DRAM pool: a named file on tmpfs, locked by the node that owns it, mapped and pre-faulted before it is announced.

What lies where in it is up to the index. One node at a time owns a pool file (flock). A file left by a dead node is
replaced by a new one with another token, never overwritten or truncated: a client that still maps the old one does
no harm (invariant 6), and reads no page that is gone. The incarnation is greater than that of any file this node id
left here. Clients let go of deleted files within seconds: a node that lacks the room waits for them.
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
from contextlib import suppress
from pathlib import Path
from typing import Final

from larder.pool_file import HEADER_BYTES, TOKEN_BYTES, PoolFileError, PoolHeader
from larder.writer_locks import has_writer

from services.storage_node import pool_dir as folder
from services.storage_node.core.index import Place
from services.storage_node.pool_dir import PoolError

logger = logging.getLogger(__name__)

_STEP_BYTES: Final = 64 * 2**20
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14; not in the mmap module
_OPEN_TRIES: Final = 10
_ROOM_S: Final = 20.0  # for processes that hold deleted files
_ROOM_UNSEEN_S: Final = 5.0  # the same if none is visible: they may be in other containers
_ROOM_POLL_S: Final = 0.25


class PoolTaken(PoolError):
    """A running node owns that file."""


class Pool:
    """An owned, mapped pool file: constructed, filled by prefault(), removed by close(). Raises PoolError."""

    def __init__(self, pool_dir: Path, node_id: str, capacity_bytes: int, *, wall_clock_ns: int) -> None:
        self.path = pool_dir.absolute() / f"{folder.PREFIX}{node_id}{folder.SUFFIX}"
        self.capacity_bytes = capacity_bytes
        stale_fd = _lock(self.path, os.O_RDWR | os.O_CREAT)
        try:
            stale = self._incarnation(stale_fd)
            self.header = PoolHeader(capacity_bytes, secrets.token_bytes(TOKEN_BYTES), max(wall_clock_ns, stale + 1))
            self._fd = self._replace()
        except BaseException:
            if not os.fstat(stale_fd).st_size and _stands_at(self.path, stale_fd):
                self.path.unlink()
            raise
        finally:
            os.close(stale_fd)
        try:
            lack = folder.lacks_room(self._fd, self._size_bytes)
            if lack is not None and not lack.may_end:
                raise self._no_room(lack, [])
            self._memory = mmap.mmap(self._fd, self._size_bytes)
        except BaseException:
            self._remove()
            raise
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    @property
    def _size_bytes(self) -> int:
        return HEADER_BYTES + self.capacity_bytes

    @property
    def data_address(self) -> int:
        """Address of the first data byte in this process."""
        return self._base + HEADER_BYTES

    async def prefault(self, stop: asyncio.Event) -> bool:
        """Takes every page of the pool from the system; False if `stop` was set before the end. Raises PoolError."""
        if not await self._has_room(stop):
            return False
        if not folder.is_tmpfs(self._fd):
            logger.warning("%s is no tmpfs: a pool there is as slow as its disk; see --pool-dir", self.path.parent)
        total = self._size_bytes
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
        """Whether a client is writing to these bytes, or was stopped while writing (see larder.writer_locks)."""
        if not 0 < place.length <= self.capacity_bytes - place.offset:
            return False  # there are no such bytes
        return has_writer(self._fd, HEADER_BYTES + place.offset, place.length)

    def close(self) -> None:
        """Unmaps and removes the file: its objects are gone. Nothing may use data_address any more."""
        self._memory.close()
        self._remove()

    async def _has_room(self, stop: asyncio.Event) -> bool:
        """Waits a while for room that others still hold; False if `stop` was set before there was any."""
        begun = time.monotonic()
        told = False
        while (lack := folder.lacks_room(self._fd, self._size_bytes)) is not None and not stop.is_set():
            found = await asyncio.to_thread(folder.holders, os.fstat(self._fd).st_dev)
            if time.monotonic() - begun >= (_ROOM_S if found else _ROOM_UNSEEN_S):
                raise self._no_room(lack, found)
            if not told:
                told = True
                logger.warning("waiting for room: %s", self._no_room(lack, found).args[0])
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _ROOM_POLL_S)
        if stop.is_set():
            return False
        try:
            os.pwrite(self._fd, self.header.pack(), 0)
        except OSError as error:
            raise self._space_error(error) from error
        return True

    def _no_room(self, lack: folder.Lack, found: list[folder.Holder]) -> PoolError:
        who = folder.who_takes_room(self.path, found) if lack.is_shared else ""
        return PoolError(f"a pool of {self._size_bytes} bytes does not fit {self.path.parent}: {lack.said}{who}")

    def _prefault_step(self, start: int, length: int) -> None:
        try:
            os.posix_fallocate(self._fd, start, length)  # reports "no space" where touching a page would raise SIGBUS
        except OSError as error:
            raise self._space_error(error) from error
        libc = ctypes.CDLL(None, use_errno=True)  # not mmap.madvise, which would hold the interpreter lock
        address = ctypes.c_void_p(self._base + start)
        if libc.madvise(address, ctypes.c_size_t(length), _MADV_POPULATE_WRITE) and ctypes.get_errno() != errno.EINVAL:
            raise self._space_error(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())))

    def _space_error(self, error: OSError) -> PoolError:
        return PoolError(f"cannot fill the pool {self.path} of {self.capacity_bytes} bytes: {error.strerror}")

    def _replace(self) -> int:
        """Puts a new, locked file in place of whatever is at the path; returns its descriptor."""
        temporary = self.path.with_suffix(f".{secrets.token_hex(4)}")
        fd = _lock(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            os.ftruncate(fd, self._size_bytes)
            with suppress(OSError):  # there may be no page left until the former file goes: see _has_room
                os.pwrite(fd, self.header.pack(), 0)
            os.rename(temporary, self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            os.close(fd)
            raise self._space_error(error) from error
        return fd

    def _incarnation(self, fd: int) -> int:
        """The incarnation in the header of the former file; 0 if there was none."""
        data = os.pread(fd, HEADER_BYTES, 0)
        if not any(data):
            return 0
        if not folder.begins_as_pool(fd):
            raise PoolError(f"{self.path} is not a pool file and will not be overwritten: move it away")
        logger.warning("replacing the pool file %s of a dead storage node with this id", self.path)
        try:
            return PoolHeader.unpack(data).incarnation
        except PoolFileError:
            return 0

    def _remove(self) -> None:
        if _stands_at(self.path, self._fd):  # not a file that another node put there after an operator removed this one
            self.path.unlink()
        os.close(self._fd)


def _lock(path: Path, flags: int) -> int:
    """Opens and locks the file at `path`, even if its owner replaces it meanwhile."""
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
    raise PoolError(f"the pool file {path} keeps changing hands: several storage nodes have the same id")


def _stands_at(path: Path, fd: int) -> bool:
    return path.exists() and os.path.samestat(os.fstat(fd), path.stat())
