"""Commands: what goes into the core. Re-exported with it: what comes out (`effects`), what replies say (`answers`).

Batches are columns, as on the wire: one list entry per key, slice or copy. Values only, no behaviour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from services.common.held import HeldCopy as HeldCopy
from services.master.core.answers import Answer as Answer
from services.master.core.answers import Asked as Asked
from services.master.core.answers import Counters as Counters
from services.master.core.answers import DrainReport as DrainReport
from services.master.core.answers import DrainSet as DrainSet
from services.master.core.answers import Existing as Existing
from services.master.core.answers import Found as Found
from services.master.core.answers import Known as Known
from services.master.core.answers import Listed as Listed
from services.master.core.answers import Matched as Matched
from services.master.core.answers import NodeReport as NodeReport
from services.master.core.answers import Pin as Pin
from services.master.core.answers import Places as Places
from services.master.core.answers import PutAborted as PutAborted
from services.master.core.answers import PutAnswer as PutAnswer
from services.master.core.answers import PutEnded as PutEnded
from services.master.core.answers import PutStarted as PutStarted
from services.master.core.answers import Rejected as Rejected
from services.master.core.answers import Released as Released
from services.master.core.answers import Removed as Removed
from services.master.core.answers import Reported as Reported
from services.master.core.answers import Result as Result
from services.master.core.answers import SegmentReport as SegmentReport
from services.master.core.answers import StatusReport as StatusReport
from services.master.core.effects import Close as Close
from services.master.core.effects import Draining as Draining
from services.master.core.effects import Effect as Effect
from services.master.core.effects import Farewell as Farewell
from services.master.core.effects import Fetch as Fetch
from services.master.core.effects import Forget as Forget
from services.master.core.effects import Note as Note
from services.master.core.effects import Ping as Ping
from services.master.core.effects import Record as Record
from services.master.core.effects import Reply as Reply
from services.master.core.effects import ToNode as ToNode
from services.master.core.effects import Welcome as Welcome
from services.master.core.refs import SegmentInfo as SegmentInfo
from services.master.core.refs import SegmentRef as SegmentRef


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
    ttl_ms: int = 0
    pin: Pin = Pin.NONE
    client: str = ""  # tells clients apart
    replace: bool = False  # also what can be read under the keys


@dataclass(frozen=True, slots=True)
class PutEnd:
    call: int
    request_id: bytes
    write_ids: Sequence[int]
    slice_counts: Sequence[int]  # one per write
    checksums: Sequence[int]  # one per slice, all writes' end to end
    failed: Sequence[tuple[int, int, int]] = ()  # (index into write_ids, slice, copy)
    wait_ms: int = 0  # for missing copies to be made elsewhere


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
class Release:
    call: int
    leases: Sequence[int]


@dataclass(frozen=True, slots=True)
class Match:
    call: int
    keys: Sequence[bytes]
    wait_ms: int = 0
    hold_ms: int = 0


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
class Stat:
    call: int
    keys: Sequence[bytes]
    lease: bool = False  # they are about to be read


@dataclass(frozen=True, slots=True)
class Status:
    call: int
    brief: bool = False  # without nodes


@dataclass(frozen=True, slots=True)
class Drain:
    call: int
    node_id: str
    cancel: bool = False


# ---- commands of nodes; `stream` names one attachment --------------------------------------------


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
    where: str = "another host"  # for people: the host's name and address


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
    failed_reasons: Sequence[str] = ()  # one for each of failed_ids, if the node gives reasons


@dataclass(frozen=True, slots=True)
class Leave:
    stream: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The stream has ended, by either side."""

    stream: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; see `Master.next_deadline_ms`."""


ClientCommand = (
    PutStart | PutEnd | PutAbort | Lookup | Release | Match | Exists | Remove | Report | List | Stat | Status | Drain
)
NodeCommand = Hello | Inventory | InventoryEnd | Heartbeat | Ack | Leave | Broken
Command = ClientCommand | NodeCommand | Tick
