"""What a master knows about objects, as values: for people, and for checks of every copy. No I/O, no clock."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from larder.errors import LarderError
from larder.places import Copy, Segment, Slice, unpack
from larder.v1 import master_pb2 as pb
from larder.v1 import types_pb2

_PINS: Final[dict[int, str]] = {types_pb2.PIN_NONE: "none", types_pb2.PIN_SOFT: "soft", types_pb2.PIN_HARD: "hard"}


@dataclass(frozen=True, slots=True)
class Facts:
    """One object. Its slices have every copy; those in one of the `silent` segments cannot be read now."""

    silent: frozenset[int]  # Segment.id
    key: bytes
    size: int
    write_id: int
    wanted: int  # copies
    pin: str
    ttl_ms: int  # left; 0: no end
    lease_ms: int  # for how long others may still be reading it; 0: nobody is
    depth: int
    slices: list[Slice]

    def answers(self, segment: Segment) -> bool:
        """Whether the segment's node does."""
        return segment.id not in self.silent

    def live(self, part: Slice) -> list[Copy]:
        return [copy for copy in part.copies if self.answers(copy.segment)]

    @property
    def copies(self) -> int:
        """On nodes that answer: the least over the slices; 0: it cannot be read now."""
        return min(len(self.live(part)) for part in self.slices)


@dataclass(frozen=True, slots=True)
class Known:
    """Answer to Stat; None is a miss. With a lease the places hold until `until`, on this process's clock."""

    objects: list[Facts | None]
    until: float
    lease: int


def known(keys: Sequence[bytes], reply: pb.StatReply, asked_at: float) -> Known:
    """Raises LarderError if the reply contradicts itself."""
    slices = unpack(reply.places)
    try:
        silent = frozenset(reply.places.segments[index].id for index in reply.silent)
        columns: Iterable[Any] = zip(
            keys, reply.sizes, reply.write_ids, reply.wanted, map(_PINS.__getitem__, reply.pins), reply.ttls_ms,
            reply.leases_ms, reply.depths, slices, strict=True,
        )  # fmt: skip
        objects = [Facts(silent, *each) if each[1] else None for each in columns]
    except (IndexError, KeyError, ValueError) as error:
        raise LarderError("the master's answer contradicts itself: its columns of facts do not agree") from error
    return Known(objects, asked_at + reply.lease_ms / 1000, reply.lease_id)
