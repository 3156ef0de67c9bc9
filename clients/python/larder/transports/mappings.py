"""Pool files of this host, mapped, and let go of once they are gone: also by a store that is not used.

A node that starts anew needs the room of its former pool, and a mapping holds it. So one thread of the process looks
after all mappings, as long as there are any; it owns none of them, and ends with the last. A view in use keeps its
memory by itself. A forked child lets go of what it inherits: its parent's stores are not its own.
"""

import ctypes
import logging
import mmap
import os
import threading
import time
import weakref
from contextlib import suppress
from typing import Final

from larder.places import Segment
from larder.pool_file import HEADER_BYTES, PoolFileError, PoolHeader
from larder.writer_locks import unlock

logger = logging.getLogger(__name__)

SWEEP_S: Final = 1.0
"""How often the file system is asked whether mapped files are still there."""
RECHECK_S: Final = 5.0
"""The same for files that were not found; asked on use only."""
_POPULATE_BYTES: Final = 32 * 2**20
_POPULATE_BYTES_MAX: Final = 16 * 2**30  # of one pool: takes seconds of a core, and 2 MiB of page tables a GiB
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14; not in the mmap module


class Mapping:
    """A mapped pool file. The memory and the descriptor, which it takes over, stay as long as this object does."""

    __slots__ = ("__weakref__", "_close_fd", "_memory", "address", "data_offset", "fd", "path")

    def __init__(self, path: str, fd: int, length: int, data_offset: int) -> None:
        self.path = path
        self.fd = fd
        self._memory = mmap.mmap(fd, length)
        self.data_offset = data_offset
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory)) + data_offset
        self._close_fd = weakref.finalize(self, os.close, fd)
        self._close_fd.atexit = False

    def view(self, offset: int, length: int) -> memoryview:
        """A read-only view; it keeps the memory mapped by itself."""
        start = self.data_offset + offset
        return memoryview(self._memory)[start : start + length].toreadonly()

    def is_current(self) -> bool:
        """Whether the file still stands at its path."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.fd))
        except OSError:
            return False

    def leave_to_parent(self) -> None:
        """In a forked child, where only views use it, though threads that stayed behind still refer to it."""
        with suppress(BufferError):  # there is a view
            self._memory.close()
        self._close_fd()

    def populate(self, start: int) -> int:
        """Fills the page tables of one step, so that the first copy to a page costs what the second does.

        Returns where the next step starts; 0 where there is none."""
        end = min(len(self._memory), _POPULATE_BYTES_MAX)
        length = min(_POPULATE_BYTES, end - start)
        address = ctypes.c_void_p(self.address - self.data_offset + start)
        if not self.is_current() or ctypes.CDLL(None).madvise(address, ctypes.c_size_t(length), _MADV_POPULATE_WRITE):
            return 0  # it went, or an older kernel: pages come one by one
        return start + length if start + length < end else 0


class Mappings:
    """The mapped files of one transport. Its thread and the process's keeper use it."""

    def __init__(self) -> None:
        self._by_token: dict[bytes, Mapping] = {}
        self._absent: dict[bytes, float] = {}  # token -> when to look again
        self._lock = threading.Lock()

    def get(self, segment: Segment) -> Mapping | None:
        """The segment's pool file; None where it cannot be reached."""
        mapping = self._by_token.get(segment.shm_token)
        now = time.monotonic()
        if mapping is not None or not segment.shm_path or now < self._absent.get(segment.shm_token, 0.0):
            return mapping
        mapping = _open(segment)
        if mapping is None:
            self._absent = {token: again for token, again in self._absent.items() if again > now}
            self._absent[segment.shm_token] = now + RECHECK_S
            return None
        with self._lock:
            former = self._by_token
            self._by_token = {token: other for token, other in former.items() if other.path != mapping.path}
            self._by_token[segment.shm_token] = mapping
        _keep(self)
        threading.Thread(target=_populate, args=(weakref.ref(mapping),), name="larder-populate", daemon=True).start()
        return mapping

    def __bool__(self) -> bool:
        return bool(self._by_token)

    def sweep(self) -> None:
        """Lets go of files that are gone."""
        with self._lock:
            former = self._by_token
            self._by_token = {token: mapping for token, mapping in former.items() if mapping.is_current()}
        del former  # unmapped here, which takes its time, and not under the lock

    def close(self) -> None:
        with self._lock:
            self._by_token = {}

    def forget_after_fork(self) -> None:
        self._lock = threading.Lock()  # whoever held it is not in this process
        former, self._by_token = self._by_token, {}
        for mapping in former.values():
            mapping.leave_to_parent()


def _open(segment: Segment) -> Mapping | None:
    try:
        fd = os.open(segment.shm_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        logger.debug("node %s is not reached by shared memory: %s", segment.node_id, error)
        return None
    try:
        header = PoolHeader.unpack(os.pread(fd, HEADER_BYTES, 0))
        length = segment.shm_data_offset + segment.capacity_bytes
        if header.token == segment.shm_token and os.fstat(fd).st_size >= length:
            unlock(fd, 0, segment.capacity_bytes)  # refused where there are no such locks
            return Mapping(segment.shm_path, fd, length, segment.shm_data_offset)
        # Else another host's file of the same name, or another life of the node.
    except (PoolFileError, OSError, ValueError) as error:
        logger.warning("the pool file %s of node %s cannot be used: %s", segment.shm_path, segment.node_id, error)
    os.close(fd)
    return None


def _populate(reference: "weakref.ref[Mapping]") -> None:
    start = 0
    while (mapping := reference()) is not None and (start := mapping.populate(start)):
        del mapping  # it may go at any time
        time.sleep(0.001)  # let others at the memory map


class _Keeper:
    """The thread that sweeps, and whom it sweeps for."""

    def __init__(self) -> None:
        self.kept: weakref.WeakSet[Mappings] = weakref.WeakSet()
        self.lock = threading.Lock()
        self.runs = False

    def keep(self, mappings: Mappings) -> None:
        with self.lock:
            self.kept.add(mappings)
            if not self.runs:
                threading.Thread(target=self._run, name="larder-mappings", daemon=True).start()
                self.runs = True

    def _run(self) -> None:
        while True:
            time.sleep(SWEEP_S)
            self._sweep()
            with self.lock:
                self.kept = weakref.WeakSet(mappings for mappings in self.kept if mappings)
                if not self.kept:
                    self.runs = False
                    return

    def _sweep(self) -> None:
        with self.lock:
            kept = list(self.kept)
        for mappings in kept:
            mappings.sweep()


_keeper = _Keeper()


def _keep(mappings: Mappings) -> None:
    _keeper.keep(mappings)


def _begin_anew_after_fork() -> None:
    global _keeper
    former, _keeper = _keeper, _Keeper()
    for mappings in list(former.kept):
        mappings.forget_after_fork()


os.register_at_fork(after_in_child=_begin_anew_after_fork)
