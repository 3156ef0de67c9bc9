"""What comes out of the core. Values only, no behaviour; `messages` hands them on.

`stream` names the attachment of the node that is told, `epoch` the reign in which it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.common.held import HeldCopy
from services.master.core.answers import Answer
from services.master.core.refs import SegmentRef


@dataclass(frozen=True, slots=True)
class Reply:
    call: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Welcome:
    stream: int
    epoch: int
    segments: list[int]
    heartbeat_ms: int


@dataclass(frozen=True, slots=True)
class Record:
    stream: int
    epoch: int
    command_id: int
    copies: list[HeldCopy]


@dataclass(frozen=True, slots=True)
class Forget:
    stream: int
    epoch: int
    command_id: int
    extents: list[tuple[int, int, int]]  # (segment, offset, write id)
    lengths: Sequence[int] = ()  # of extents where no writer may be left either; empty: not looked at


@dataclass(frozen=True, slots=True)
class Fetch:
    """Copy a slice from another node into this one, verify it, and hold it."""

    stream: int
    epoch: int
    command_id: int
    copy: HeldCopy
    source: SegmentRef
    source_offset: int
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks the node for a heartbeat now."""

    stream: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Draining:
    """Tells the node whether it is being drained, which it remembers."""

    stream: int
    epoch: int
    draining: bool


@dataclass(frozen=True, slots=True)
class Farewell:
    stream: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Close:
    """End the stream, telling the node why."""

    stream: int
    epoch: int
    reason: str
    id_taken: bool = False  # by another process, which is alive


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the operators' log: what became of nodes and of their copies."""

    text: str
    grave: bool = False  # somebody should look


ToNode = Welcome | Record | Forget | Fetch | Ping | Draining | Farewell | Close
Effect = Reply | ToNode | Note
