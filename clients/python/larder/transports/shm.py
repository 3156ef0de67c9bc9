"""Shared memory: the pool file of a node on this host, mapped. A put is one copy, a get one or none.

That the file is the segment's is proved by the token in its header, never by names. Whoever copies from a mapping holds
it alive. A dead node's file changes no more, so to read it or write to it harms nobody. A writer holds a lock on the
bytes from before it looks at the clock until it is done, so that its node can tell that nobody writes there any more.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from larder.copying import TooLate, load_pieces, store_pieces
from larder.places import Fault, Segment
from larder.transports import Move, Reach, in_range
from larder.transports.copiers import INLINE_BYTES, Copiers
from larder.transports.mappings import Mapping, Mappings
from larder.writer_locks import lock, unlock

logger = logging.getLogger(__name__)

JOB_BYTES: Final = 2 * 2**20
"""Copied by one thread at a stretch, if the objects allow: 0.2 to 0.6 ms."""
PADDING_BYTES_MAX: Final = 256
"""Between objects that were placed side by side: the master's alignment."""


class SharedMemory:
    """The transport for nodes on this host."""

    name = "shm"

    def __init__(self, copiers: Copiers) -> None:
        self._copiers = copiers
        self._mappings = Mappings()

    def reach(self, segment: Segment) -> Reach:
        return Reach.NONE if self._mappings.get(segment) is None else Reach.GOOD

    async def read(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        return await self._run(_read, segment, moves, until)

    async def write(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        return await self._run(_write, segment, moves, until)

    def view(self, segment: Segment, offset: int, length: int) -> memoryview | None:
        """A read-only view of the pool itself; None where the pool cannot be reached."""
        mapping = self._mappings.get(segment)
        return None if mapping is None else mapping.view(offset, length)

    def can_abandon(self, move: Move) -> bool:
        return False  # a copy does not hang

    async def close(self) -> None:
        self._mappings.close()

    async def _run(
        self,
        work: Callable[[Mapping, Sequence[Move], float], list[Fault | None]],
        segment: Segment,
        moves: Sequence[Move],
        until: float,
    ) -> list[Fault | None]:
        mapping = self._mappings.get(segment)
        if mapping is None or not in_range(segment, moves):
            return [Fault.UNREACHABLE] * len(moves)
        total = sum(move.memory.length for move in moves)
        if total <= INLINE_BYTES:
            return work(mapping, moves, until)
        short = max(move.memory.length for move in moves) <= JOB_BYTES
        jobs = [partial(work, mapping, job, until) for job in _jobs(moves)]
        return [fault for faults in await self._copiers.run(jobs, short=short) for fault in faults]


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
