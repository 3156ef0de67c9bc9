"""Storage nodes and their segments as the master knows them, down to every byte's account. No decisions here.

Keeps the sum of invariant 3: each byte of a segment is in one account, and changes accounts only here.
"""

from typing import Protocol

from services.master.core.allocator import Allocator, aligned
from services.master.core.eviction import Residents, Traffic
from services.master.core.messages import HeldCopy, Hello, Pin, SegmentInfo, SegmentRef
from services.master.core.pending import PendingForgets
from services.master.core.phases import TRANSITIONS, Event, Phase
from services.master.core.quarantine import Hold

_HARD, _FORGETTING = Pin.HARD, Hold.FORGETTING  # members of an enum are slow to look up


class Sender(Protocol):
    """Whoever sent a node a command: told once how it ended, by the command's number."""

    outlives_silence: bool
    """Whether a silent node may still acknowledge it while its stream lasts."""

    def done(self, command_id: int) -> None:
        """The node has carried it out."""

    def refused(self, command_id: int, reason: str, *, source_is_corrupt: bool) -> None:
        """The node could not. `source_is_corrupt`: what it was to copy is not what was recorded."""

    def cut_off(self, command_id: int) -> None:
        """The node is silent or away: no outcome will be heard."""


class Quarantined:
    """An extent that may not be reused yet."""

    __slots__ = ("hold", "length", "not_before", "offset", "segment", "waiting", "write_id")

    def __init__(
        self, segment: "Segment", offset: int, length: int, write_id: int, not_before: int, hold: Hold
    ) -> None:
        self.segment = segment
        self.offset = offset
        self.length = length
        self.write_id = write_id
        self.not_before = not_before
        self.hold = hold
        self.waiting: PendingForgets | None = None  # until it is forgotten


class Segment:
    """One pool: who holds which of its bytes. free + live + reserved + quarantined = capacity (invariant 3)."""

    def __init__(self, number: int, node: "Node", info: SegmentInfo, traffic: Traffic, watermark: float) -> None:
        self.number = number
        self.node = node
        self.info = info
        self.allocator = Allocator(info.capacity_bytes)
        self.capacity = self.allocator.capacity
        self.limit_bytes = int(watermark * self.capacity)  # live and reserved bytes beyond this are evicted
        self.residents = Residents(traffic)
        self.quarantine: dict[int, Quarantined] = {}  # by offset
        self.live = False  # copies may be read and placed here
        self.fenced = False  # once adopted, its free space must outwait writes of an earlier reign
        self.gone = False  # given up: what is released here is of no account
        self.live_bytes = 0
        self.reserved_bytes = 0
        self.quarantined_bytes = 0
        self.pinned_bytes = 0  # live ones that are pinned hard
        self.soon_bytes = 0  # quarantined bytes that wait for an acknowledgement alone
        self.copies = 0
        self.refer()

    def refer(self) -> None:
        """From now on it is named with its node's host and zone of now."""
        self.ref = SegmentRef(self.number, self.node.node_id, self.node.host_id, self.node.zone, self.info)

    def excess(self, size: int) -> int:
        """Bytes above the watermark with `size` more; negative below it."""
        return self.live_bytes + self.reserved_bytes + size - self.limit_bytes

    def could_hold(self, size: int) -> bool:
        """Whether eviction could make room here, without waiting for what is reserved or in long quarantine."""
        return self.allocator.free_bytes + self.soon_bytes + self.live_bytes - self.pinned_bytes >= size

    # ---- accounts; `length` is that of a slice, `size` that of its extent ------------------------

    def reserve(self, length: int) -> int | None:
        """Take a free extent and return its offset; None if none is long enough."""
        offset = self.allocator.allocate(length)
        if offset is not None:
            self.reserved_bytes += aligned(length)
        return offset

    def unreserve(self, offset: int, length: int) -> None:
        """Give back a reserved extent that nobody was told of."""
        self.reserved_bytes -= aligned(length)
        self.allocator.free(offset, length)

    def settle(self, size: int, pin: int) -> None:
        """A reserved extent holds a copy from now on."""
        self.reserved_bytes -= size
        self.live_bytes += size
        self.copies += 1
        if pin == _HARD:
            self.pinned_bytes += size

    def adopt(self, size: int, pin: int) -> None:
        """An extent that was in no account holds a copy."""
        self.live_bytes += size
        self.copies += 1
        if pin == _HARD:
            self.pinned_bytes += size

    def unsettle(self, size: int, pin: int) -> None:
        """A copy goes: its extent counts as reserved until it is let go, at once."""
        self.live_bytes -= size
        self.reserved_bytes += size
        self.copies -= 1
        if pin == _HARD:
            self.pinned_bytes -= size

    def let_go(self, size: int) -> None:
        """A reserved extent leaves its account, to be quarantined or freed at once."""
        self.reserved_bytes -= size
        assert self.reserved_bytes >= 0, (self.number, self.reserved_bytes)

    def begin_quarantine(self, entry: Quarantined) -> None:
        assert entry.offset not in self.quarantine, (self.number, entry.offset)
        self.quarantine[entry.offset] = entry
        self.quarantined_bytes += aligned(entry.length)
        if entry.hold is _FORGETTING:
            self.soon_bytes += aligned(entry.length)

    def end_quarantine(self, entry: Quarantined) -> None:
        """It is free; `hold` is still the last one."""
        del self.quarantine[entry.offset]
        self.quarantined_bytes -= aligned(entry.length)
        if entry.hold is _FORGETTING:
            self.soon_bytes -= aligned(entry.length)
        self.allocator.free(entry.offset, entry.length)


class Node:
    """One life of a storage node."""

    def __init__(self, node_id: str, incarnation: int, now: int) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.host_id = ""
        self.where = ""  # its host, as people know it
        self.claimant: int | None = None  # the stream of another process that wants this id
        self.zone = ""
        self.draining = False  # nothing new is placed there
        self.stream: int | None = None
        self.phase = Phase.AWAY
        self.heard_at = now
        self.probed_at: int | None = None  # when it was asked for a heartbeat, if nothing came since
        self.awaited = False  # a timer is set for the probe
        self.suspect_since = 0  # means something while it is suspect
        self.segments: list[Segment] = []
        self.inventory: list[HeldCopy] = []
        self.outstanding: dict[int, Sender] = {}  # the sender of each command that is not acknowledged
        self.to_forget: list[Quarantined] = []  # sent at the end of the step
        self.strays: list[tuple[int, int, int]] = []  # (segment, offset, write id) to forget, in no account

    def on(self, event: Event) -> None:
        self.phase = TRANSITIONS[self.phase][event]

    def is_life_of(self, command: Hello) -> bool:
        """Whether the process that dials is the same one."""
        infos = [segment.info for segment in self.segments]
        return self.incarnation == command.incarnation and infos == list(command.segments)
