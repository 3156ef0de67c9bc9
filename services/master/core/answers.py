"""What the core answers to calls. Values only, no behaviour; `messages` hands them on.

Batches are columns, as on the wire: one list entry per key, slice or copy.
"""

from dataclasses import dataclass, field
from enum import IntEnum

from services.master.core.refs import SegmentRef


class Result(IntEnum):
    """What became of one key. The numbers are the wire's (`larder.v1.Result`)."""

    OK = 1
    EXISTS = 2
    MISS = 3
    NO_SPACE = 4
    TOO_LARGE = 5
    UNKNOWN_WRITE = 6
    LOST = 7
    PIN_REFUSED = 8


class Pin(IntEnum):
    """How firmly an object keeps its place. The numbers are the wire's (`larder.v1.Pin`)."""

    NONE = 0
    SOFT = 1
    HARD = 2


@dataclass(slots=True)
class Places:
    """Columns of `larder.v1.Places`."""

    segments: list[SegmentRef] = field(default_factory=list)
    slice_counts: list[int] = field(default_factory=list)
    slice_lengths: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    copy_counts: list[int] = field(default_factory=list)
    copy_segments: list[int] = field(default_factory=list)  # index into `segments`
    copy_offsets: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PutStarted:
    results: list[Result]
    write_ids: list[int]
    places: Places
    write_ttl_ms: int
    shortage: str = ""  # why some found no room, unless the pools are simply full
    remedy: str = ""  # what to do about it


@dataclass(frozen=True, slots=True)
class PutEnded:
    results: list[Result]
    copies: list[int]


@dataclass(frozen=True, slots=True)
class PutAborted:
    results: list[Result]


@dataclass(frozen=True, slots=True)
class Found:
    results: list[Result]
    sizes: list[int]
    places: Places
    lease_ms: int
    lease: int = 0  # its number; 0: nothing to give back


@dataclass(frozen=True, slots=True)
class Released:
    pass


@dataclass(frozen=True, slots=True)
class Matched:
    matched: int


@dataclass(frozen=True, slots=True)
class Existing:
    sizes: list[int]  # 0: it cannot be read now


@dataclass(frozen=True, slots=True)
class Removed:
    results: list[Result]


@dataclass(frozen=True, slots=True)
class Reported:
    dropped: int


@dataclass(frozen=True, slots=True)
class Listed:
    keys: list[bytes]
    sizes: list[int]
    copies: list[int]
    more: bool


@dataclass(frozen=True, slots=True)
class Known:
    """All that is known about objects."""

    results: list[Result]
    sizes: list[int]
    places: Places
    silent: list[int]  # indexes into the places' segments
    wanted: list[int]
    pins: list[int]
    ttls_ms: list[int]  # left; 0: no end
    leases_ms: list[int]  # left, before this call
    write_ids: list[int]
    depths: list[int]
    lease_ms: int = 0
    lease: int = 0


@dataclass(frozen=True, slots=True)
class SegmentReport:
    segment: SegmentRef
    capacity_bytes: int
    live_bytes: int
    reserved_bytes: int
    quarantined_bytes: int
    free_bytes: int
    largest_free_bytes: int
    copies: int
    pinned_bytes: int


@dataclass(frozen=True, slots=True)
class DrainReport:
    objects: int
    without_room: int


@dataclass(frozen=True, slots=True)
class NodeReport:
    node_id: str
    host_id: str
    state: str
    incarnation: int
    segments: list[SegmentReport]
    zone: str
    draining: bool
    drain: DrainReport | None = None  # on request only: it takes a look at objects


@dataclass(slots=True)
class Counters:
    """What has happened in the core since it began. Only ever grows."""

    put_objects: int = 0
    put_bytes: int = 0
    evicted_objects: int = 0
    evicted_bytes: int = 0
    displaced_objects: int = 0
    expired_objects: int = 0
    refused_pins: int = 0
    refused_puts: int = 0
    expired_writes: int = 0
    lost_objects: int = 0
    lost_copies: int = 0
    corrupt_copies: int = 0
    unreachable_reports: int = 0
    probes: int = 0
    failed_probes: int = 0
    adopted_copies: int = 0
    dropped_claims: int = 0
    degraded_puts: int = 0
    repaired_copies: int = 0
    failed_repairs: int = 0
    trimmed_copies: int = 0
    drained_copies: int = 0
    stale_messages: int = 0


@dataclass(slots=True)
class Asked:
    """What calls of one kind asked for, and how much of it was there. Only ever grows."""

    requested_keys: int = 0
    hit_keys: int = 0
    hit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The core at a glance. Apart from `NodeReport.drain` it takes no look at objects."""

    epoch: int
    objects: int
    object_bytes: int
    writes_in_flight: int
    slice_bytes: int
    nodes: list[NodeReport]
    counters: Counters
    asked: dict[str, Asked]  # by operation: lookup, match
    up_ms: int
    objects_below_target: int
    copies_missing: int
    repairs_pending: int
    waiting_puts: int
    rested_ms: int = 0
    rest_left_ms: int = 0  # until free space can be used; 0: it can
    attached: int = 0  # nodes that answer now


@dataclass(frozen=True, slots=True)
class DrainSet:
    pass


@dataclass(frozen=True, slots=True)
class Rejected:
    """The whole call was refused and changed nothing."""

    overloaded: bool  # else an argument is wrong
    reason: str
    retry_ms: int = 0  # after an overload: when to ask again


PutAnswer = PutStarted | PutEnded | PutAborted
Answer = (
    PutAnswer
    | Found
    | Released
    | Matched
    | Existing
    | Removed
    | Reported
    | Listed
    | Known
    | StatusReport
    | DrainSet
    | Rejected
)
