"""Shared memory: the pool file of a node on this host, mapped. A put is one copy, a get one or none.

That the file is the segment's is proved by the token in its header, never by names. Mappings are kept by token and
dropped when their file is gone; whoever still copies from one holds it alive. A dead node's file changes no more, so to
read it or write to it harms nobody. A writer holds a lock on the bytes from before it looks at the clock until it is
done, so that its node can tell that nobody writes there any more.
"""

import ctypes
import logging
import mmap
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from larder.copying import TooLate, load_pieces, store_pieces
from larder.places import Fault, Segment
from larder.pool_file import HEADER_BYTES, PoolFileError, PoolHeader
from larder.transports import Move, Reach, in_range
from larder.transports.copiers import INLINE_BYTES, Copiers
from larder.writer_locks import lock, unlock

logger = logging.getLogger(__name__)

JOB_BYTES: Final = 2 * 2**20
"""Copied by one thread at a stretch, if the objects allow: 0.2 to 0.6 ms."""
PADDING_BYTES_MAX: Final = 256
"""Between objects that were placed side by side: the master's alignment."""
RECHECK_S: Final = 5.0
"""How often the file system is asked again: for files not found, and for mapped files that are gone."""
_POPULATE_BYTES: Final = 32 * 2**20
_POPULATE_BYTES_MAX: Final = 16 * 2**30  # of one pool: takes seconds of a core, and 2 MiB of page tables a GiB
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14; not in the mmap module


class Mapping:
    """A mapped pool file. The memory and the descriptor, which it takes over, stay as long as this object does."""

    __slots__ = ("__weakref__", "_memory", "address", "data_offset", "fd", "path")

    def __init__(self, path: str, fd: int, length: int, data_offset: int) -> None:
        self.path = path
        self.fd = fd
        self._memory = mmap.mmap(fd, length)
        self.data_offset = data_offset
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory)) + data_offset
        weakref.finalize(self, os.close, fd).atexit = False

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

    def populate(self) -> None:
        """Fills the page tables step by step, so that the first copy to a page costs what the second does."""
        libc = ctypes.CDLL(None)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        end = min(len(self._memory), _POPULATE_BYTES_MAX)
        for step in range(0, end, _POPULATE_BYTES):
            length = min(_POPULATE_BYTES, end - step)
            if libc.madvise(ctypes.c_void_p(start + step), ctypes.c_size_t(length), _MADV_POPULATE_WRITE):
                return  # an older kernel: pages come one by one
            time.sleep(0.001)  # let others at the memory map


class SharedMemory:
    """The transport for nodes on this host."""

    name = "shm"

    def __init__(self, copiers: Copiers) -> None:
        self._copiers = copiers
        self._mappings: dict[bytes, Mapping] = {}
        self._absent: dict[bytes, float] = {}  # token -> when to look again
        self._sweep_at = 0.0

    def reach(self, segment: Segment) -> Reach:
        return Reach.NONE if self._mapping(segment) is None else Reach.GOOD

    async def read(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        return await self._run(_read, segment, moves, until)

    async def write(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        return await self._run(_write, segment, moves, until)

    def view(self, segment: Segment, offset: int, length: int) -> memoryview | None:
        """A read-only view of the pool itself; None where the pool cannot be reached."""
        mapping = self._mapping(segment)
        return None if mapping is None else mapping.view(offset, length)

    def can_abandon(self, move: Move) -> bool:
        return False  # a copy does not hang

    async def close(self) -> None:
        self._mappings.clear()

    async def _run(
        self,
        work: Callable[[Mapping, Sequence[Move], float], list[Fault | None]],
        segment: Segment,
        moves: Sequence[Move],
        until: float,
    ) -> list[Fault | None]:
        mapping = self._mapping(segment)
        if mapping is None or not in_range(segment, moves):
            return [Fault.UNREACHABLE] * len(moves)
        total = sum(move.memory.length for move in moves)
        if total <= INLINE_BYTES:
            return work(mapping, moves, until)
        short = max(move.memory.length for move in moves) <= JOB_BYTES
        jobs = [partial(work, mapping, job, until) for job in _jobs(moves)]
        return [fault for faults in await self._copiers.run(jobs, short=short) for fault in faults]

    def _mapping(self, segment: Segment) -> Mapping | None:
        now = time.monotonic()
        if now >= self._sweep_at:
            self._sweep(now)
        mapping = self._mappings.get(segment.shm_token)
        if mapping is not None or not segment.shm_path or now < self._absent.get(segment.shm_token, 0.0):
            return mapping
        mapping = _open(segment)
        if mapping is None:
            self._absent[segment.shm_token] = now + RECHECK_S
            return None
        self._mappings = {token: other for token, other in self._mappings.items() if other.path != mapping.path}
        self._mappings[segment.shm_token] = mapping
        threading.Thread(target=mapping.populate, name="larder-populate", daemon=True).start()
        return mapping

    def _sweep(self, now: float) -> None:
        self._sweep_at = now + RECHECK_S
        self._mappings = {token: mapping for token, mapping in self._mappings.items() if mapping.is_current()}
        self._absent = {token: again for token, again in self._absent.items() if again > now}


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


def _jobs(moves: Sequence[Move]) -> list[Sequence[Move]]:
    jobs: list[Sequence[Move]] = []
    start = filled = 0
    for index, move in enumerate(moves):
        if filled and filled + move.memory.length > JOB_BYTES:
            jobs.append(moves[start:index])
            start, filled = index, 0
        filled += move.memory.length
    jobs.append(moves[start:])
    return jobs


def _read(mapping: Mapping, moves: Sequence[Move], until: float) -> list[Fault | None]:
    faults: list[Fault | None] = []
    for move in moves:
        if time.monotonic() >= until:
            faults.append(Fault.LATE)
            continue
        found = load_pieces(move.memory.pieces, mapping.address + move.offset, hashing=bool(move.checksum))
        if time.monotonic() >= until:  # the space may be another object's by now: what was read proves nothing
            faults.append(Fault.LATE)
        else:
            faults.append(Fault.CORRUPT if found != move.checksum else None)
    return faults


def _write(mapping: Mapping, moves: Sequence[Move], until: float) -> list[Fault | None]:
    faults: list[Fault | None] = []
    for run in _runs(moves):
        start = mapping.data_offset + run[0].offset
        length = run[-1].offset + run[-1].memory.length - run[0].offset
        try:
            lock(mapping.fd, start, length)  # and only then the clock: see larder.writer_locks
        except OSError as error:
            logger.warning("the pool file %s cannot be locked: %s", mapping.path, error)
            faults += [Fault.UNREACHABLE] * len(run)
            continue
        try:
            faults += [_write_one(mapping, move, until) for move in run]
        finally:
            unlock(mapping.fd, start, length)
    return faults


def _write_one(mapping: Mapping, move: Move, until: float) -> Fault | None:
    try:
        digest = store_pieces(move.memory.pieces, mapping.address + move.offset, hashing=move.hashing, until=until)
    except TooLate:
        return Fault.LATE
    if move.hashing:
        move.checksum = digest
    return None


def _runs(moves: Sequence[Move]) -> list[Sequence[Move]]:
    """The moves, those that lie side by side (but for padding) together."""
    runs: list[Sequence[Move]] = []
    first = 0
    for index in range(1, len(moves)):
        before = moves[index - 1]
        if not 0 <= moves[index].offset - (before.offset + before.memory.length) < PADDING_BYTES_MAX:
            runs.append(moves[first:index])
            first = index
    return [*runs, moves[first:]] if moves else []
