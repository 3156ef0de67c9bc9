"""The port through which bytes move, with two adapters: `shm` (the same host) and `engine` (any host).

A Move is one copy of one slice. A transport carries out many at once, to or from one segment, and answers per Move
what went wrong, or None. It keeps three promises: nothing is written or handed over as good after `until` (invariant
7); what was read has the checksum that was asked for (invariant 10); and when it returns, also by an error or a
cancellation, nothing can land in the caller's memory any more, but in private memory after STALLED, LATE or a
cancellation.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

from larder.memory import Memory
from larder.places import Fault, Segment


class Move:
    """`checksum`: of a read, what the bytes must have (0: not checked); of a write with `hashing`, the answer.

    `private`: nobody but this client knows the memory yet. A transfer that was given up may still land in it, and
    then nobody ever shall. `arrived`: of a read that can be abandoned, set once its bytes are there and verified.
    """

    __slots__ = ("arrived", "checksum", "hashing", "memory", "offset", "private")

    def __init__(
        self, memory: Memory, offset: int, *, checksum: int = 0, hashing: bool = False, private: bool = False
    ) -> None:
        self.memory = memory
        self.offset = offset
        self.checksum = checksum
        self.hashing = hashing
        self.private = private
        self.arrived = False


class Reach(IntEnum):
    """The less, the better."""

    GOOD = 0
    DOUBTFUL = 1  # it does not seem to answer
    NONE = 2


class Transport(Protocol):
    """Lives on one event loop."""

    name: str

    def reach(self, segment: Segment) -> Reach:
        """Whether this transport leads there: cheap, and without waiting."""

    async def read(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        """Fills the moves' memory from the pool. `until` is a moment of time.monotonic()."""

    async def write(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        """Writes the moves' memory into the pool."""

    def can_abandon(self, move: Move) -> bool:
        """Whether a read of the move may hang on its peer, and a cancellation then ends it without waiting for that."""

    async def close(self) -> None:
        """Ends calls under way."""


def in_range(segment: Segment, moves: Sequence[Move]) -> bool:
    """Whether all moves stay inside the segment: nothing else would keep a copy loop out of other memory."""
    end = segment.capacity_bytes
    return all(move.offset >= 0 and move.offset + move.memory.length <= end for move in moves)
