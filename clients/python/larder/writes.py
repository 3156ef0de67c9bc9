"""One object on its way in a put: what was reserved for it, what failed, and what becomes of it. No I/O.

The client's side of a write; the master's is in its core.
"""

import time
from dataclasses import dataclass
from functools import cache
from typing import Final

from larder.errors import DeadlineExceeded, LarderError, WriteFailed
from larder.memory import Memory
from larder.places import Fault, Segment, Slice
from larder.v1.types_pb2 import Result

_OK, _EXISTS = int(Result.RESULT_OK), int(Result.RESULT_EXISTS)
_UNKNOWN_WRITE: Final = int(Result.RESULT_UNKNOWN_WRITE)


@dataclass(frozen=True, slots=True)
class PutResult:
    """`copies`: how many copies of every slice there were in the end, maybe fewer than asked; 0 where the key existed.

    `existed`: the key has another put's bytes; of a put that replaces, those of one that ended later.

    A copy that fails is made again on another node, by the nodes, as long as the put's deadline allows (at most 2 s).
    """

    copies: int
    existed: bool


EXISTED: Final = PutResult(copies=0, existed=True)


class Write:
    """One object on its way."""

    __slots__ = ("checksums", "failed", "index", "key", "memory", "slices", "write_id")

    def __init__(self, index: int, key: bytes, memory: Memory, slices: list[Slice], write_id: int) -> None:
        self.index = index
        self.key = key
        self.memory = memory
        self.slices = slices
        self.write_id = write_id
        self.checksums = [0] * len(slices)
        self.failed: list[tuple[int, int, Fault]] = []  # (slice, copy, why)

    def fail(self, number: int, copy: int, fault: Fault) -> None:
        self.failed.append((number, copy, fault))

    def is_lost(self) -> bool:
        """Whether some slice has no copy left."""
        failed = [number for number, _, _ in self.failed]
        return any(failed.count(number) == len(part.copies) for number, part in enumerate(self.slices))

    def unreached(self) -> list[Segment]:
        """Where the copies of the last slice that failed should have gone; none if it was only late."""
        last = self.failed[-1][0]
        return [
            self.slices[number].copies[copy].segment
            for number, copy, fault in self.failed
            if number == last and fault is not Fault.LATE
        ]

    def lost(self, deadline: float) -> LarderError:
        """Why no copy of some slice was written."""
        number, copy, fault = self.failed[-1]
        node = self.slices[number].copies[copy].segment.node_id
        if fault is Fault.LATE and time.monotonic() >= deadline:
            return DeadlineExceeded("the time ran out before the bytes were written", key=self.key)
        if fault is Fault.LATE:
            said = "no copy of some slice could be written: the write ran out of time"
            return WriteFailed(said, key=self.key, node=node)
        return WriteFailed("no copy of some slice could be written from this host", key=self.key, node=node)

    def ended(self, result: int, copies: int) -> PutResult | LarderError:
        """By what the master answered to PutEnd."""
        if result == _OK:
            return _stored(copies)
        if result == _EXISTS:
            return EXISTED
        if result == _UNKNOWN_WRITE:
            return WriteFailed("the write had expired when it ended", key=self.key)
        return WriteFailed("the storage nodes were lost before they had recorded it", key=self.key)


@cache
def _stored(copies: int) -> PutResult:
    """The same value for all keys of a batch."""
    return PutResult(copies=copies, existed=False)
