"""Segments as the world outside knows them: as their nodes announce them, and as answers and effects name them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A pool as its node announces it; opaque to the core but for its capacity."""

    capacity_bytes: int
    shm_path: str = ""
    shm_token: bytes = b""
    shm_data_offset: int = 0
    engine_endpoint: str = ""
    engine_base: int = 0
    engine_protocol: str = ""


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
