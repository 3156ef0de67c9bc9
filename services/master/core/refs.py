"""Segments as the world outside knows them: as their nodes announce them, and as answers and effects name them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A pool as its node announces it."""

    capacity_bytes: int
    address: str = ""  # for people: where other hosts reach it
    ways: bytes = b""  # to its bytes; only compared here


@dataclass(frozen=True, slots=True, eq=False)
class SegmentRef:
    """A segment as it was when it was named: whole, so that nobody has to ask for it later, when it may be gone.

    Equal to itself only, so that what is made of it can be kept with it.
    """

    number: int
    node_id: str
    host_id: str
    zone: str
    info: SegmentInfo
