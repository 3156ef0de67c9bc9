"""What goes into the core (commands), what comes out (effects) and what replies say. Values only, no behaviour.

Batches are columns, as on the wire: one list entry a key, slice or copy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class Result(IntEnum):
    """What became of one key. The numbers are the wire's (`larder.v1.Result`)."""

    OK = 1
    EXISTS = 2
    MISS = 3
    NO_SPACE = 4
    TOO_LARGE = 5
    UNKNOWN_WRITE = 6
    LOST = 7


class Fault(IntEnum):
    """What a reader found wrong with a copy (`larder.v1.Fault`)."""

    CORRUPT = 1
    UNREACHABLE = 2


# ---- commands of clients; `call` names who waits for the reply, `request_id` the logical request -


@dataclass(frozen=True, slots=True)
class PutStart:
    call: int
    request_id: bytes
    keys: Sequence[bytes]
    sizes: Sequence[int]
    copies: int = 0
    depths: Sequence[int] = ()
    host_id: str = ""
    wait_ms: int = 0
    zone: str = ""


@dataclass(frozen=True, slots=True)
class PutEnd:
    call: int
    request_id: bytes
    write_ids: Sequence[int]
    slice_counts: Sequence[int]  # one a write
    checksums: Sequence[int]  # one a slice, all writes' end to end
    failed: Sequence[tuple[int, int, int]] = ()  # (index into write_ids, slice, copy)
    wait_ms: int = 0  # for copies that are made elsewhere


@dataclass(frozen=True, slots=True)
class PutAbort:
    call: int
    request_id: bytes
    write_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Lookup:
    call: int
    keys: Sequence[bytes]
    host_id: str = ""
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    call: int
    keys: Sequence[bytes]
    wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Exists:
    call: int
    keys: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Remove:
    call: int
    request_id: bytes
    keys: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Report:
    call: int
    keys: Sequence[bytes]
    slices: Sequence[int]
    segments: Sequence[int]
    offsets: Sequence[int]
    faults: Sequence[Fault]


@dataclass(frozen=True, slots=True)
class List:
    call: int
    prefix: bytes = b""
    after: bytes = b""
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    call: int


@dataclass(frozen=True, slots=True)
class Drain:
    call: int
    node_id: str
    cancel: bool = False


# ---- commands of nodes; `stream` names one attachment --------------------------------------------


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


@dataclass(frozen=True, slots=True)
class Hello:
    stream: int
    node_id: str
    incarnation: int
    epoch: int
    host_id: str
    segments: Sequence[SegmentInfo]
    zone: str = ""
    draining: bool = False


class HeldCopy(NamedTuple):
    """One slice's bytes on a node, as recorded there. A tuple: thousands of them are made in one call."""

    key: bytes
    write_id: int
    object_size: int
    slice_count: int
    slice_index: int
    segment: int
    offset: int
    length: int
    checksum: int
    depth: int
    wanted: int = 1  # copies of the object


@dataclass(frozen=True, slots=True)
class Inventory:
    stream: int
    copies: Sequence[HeldCopy]


@dataclass(frozen=True, slots=True)
class InventoryEnd:
    stream: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    stream: int


@dataclass(frozen=True, slots=True)
class Ack:
    stream: int
    epoch: int
    command_ids: Sequence[int]
    failed_ids: Sequence[int] = ()  # could not be carried out
    corrupt_ids: Sequence[int] = ()  # fetches that found their source corrupt


@dataclass(frozen=True, slots=True)
class Leave:
    stream: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The stream ended, whoever ended it."""

    stream: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; see `Master.next_deadline_ms`."""


ClientCommand = PutStart | PutEnd | PutAbort | Lookup | Match | Exists | Remove | Report | List | Status | Drain
NodeCommand = Hello | Inventory | InventoryEnd | Heartbeat | Ack | Leave | Broken
Command = ClientCommand | NodeCommand | Tick


# ---- replies -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Places:
    """Columns of `larder.v1.Places`, with segments by the core's number."""

    segments: list[int] = field(default_factory=list)
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


@dataclass(frozen=True, slots=True)
class Matched:
    matched: int


@dataclass(frozen=True, slots=True)
class Existing:
    exists: list[bool]


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
class SegmentReport:
    segment: int
    live_bytes: int
    reserved_bytes: int
    quarantined_bytes: int
    free_bytes: int
    largest_free_bytes: int
    copies: int


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
    drain: DrainReport | None


@dataclass(frozen=True, slots=True)
class StatusReport:
    epoch: int
    objects: int
    object_bytes: int
    writes_in_flight: int
    slice_bytes: int
    nodes: list[NodeReport]


@dataclass(frozen=True, slots=True)
class DrainSet:
    pass


@dataclass(frozen=True, slots=True)
class Rejected:
    """The whole call was refused and changed nothing."""

    overloaded: bool  # else: the argument is wrong
    reason: str


PutAnswer = PutStarted | PutEnded | PutAborted
Answer = PutAnswer | Found | Matched | Existing | Removed | Reported | Listed | StatusReport | DrainSet | Rejected


# ---- effects -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    call: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Welcome:
    stream: int
    segments: list[int]


@dataclass(frozen=True, slots=True)
class Record:
    stream: int
    command_id: int
    copies: list[HeldCopy]


@dataclass(frozen=True, slots=True)
class Forget:
    stream: int
    command_id: int
    extents: list[tuple[int, int, int]]  # (segment, offset, write id)
    lengths: Sequence[int] = ()  # of extents where no writer may be left either; empty: not looked at


@dataclass(frozen=True, slots=True)
class Fetch:
    """Copy a slice from another node into this one, verify it, and hold it."""

    stream: int
    command_id: int
    copy: HeldCopy
    source_segment: int
    source_offset: int
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class Ping:
    """The node is to say a word at once."""

    stream: int


@dataclass(frozen=True, slots=True)
class Draining:
    """The node is to remember whether it is to go."""

    stream: int
    draining: bool


@dataclass(frozen=True, slots=True)
class Farewell:
    stream: int


@dataclass(frozen=True, slots=True)
class Close:
    """End the stream, telling the node why."""

    stream: int
    reason: str


Effect = Reply | Welcome | Record | Forget | Fetch | Ping | Draining | Farewell | Close
