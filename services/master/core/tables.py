"""The core's data: its limits, everything it knows, and the clock of the step. No decisions here."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sortedcontainers import SortedDict, SortedList

from services.master.core.absences import Absences
from services.master.core.answers import Asked, Counters
from services.master.core.cluster import Node, Segment
from services.master.core.eviction import Traffic
from services.master.core.messages import Close, Effect, Note
from services.master.core.objects import Copy, Object, Slice
from services.master.core.pending import Write
from services.master.core.rest import Rest


@dataclass(frozen=True, slots=True)
class Config:
    """Limits and times. Times are durations in ms on the master's monotonic clock."""

    slice_bytes: int = 16 << 20
    copies: int = 1
    lease_ms: int = 10_000
    pin_share: float = 0.25  # of a segment that may be pinned hard
    ttl_ms_max: int = 366 * 86_400_000
    high_watermark: float = 0.95  # share of a segment that live and reserved bytes may take before eviction begins
    write_ttl_ms: int = 15_000  # a put that has not ended by then has failed
    # Transfers of a write that ended badly may still land: the engine's own time-out is 30 s plus 1 ns a byte.
    late_write_ms: int = 35_000
    heartbeat_ms: int = 250
    record_timeout_ms: int = 5_000  # after that the put goes on without a live node that has not recorded
    silence_ms: int = 2_000  # a node that says nothing for so long is suspect
    probe_ms: int = 500  # the same for a node that a client could not reach, from when the client said so
    repair_after_ms: int = 2_000  # a suspect node's copies are made elsewhere after so long
    repair_bytes_per_s: int = 256_000_000
    repair_timeout_ms: int = 10_000  # of one slice, node to node
    lost_ms: int = 30_000  # a suspect node's copies are given up after so long
    partial_ms: int = 60_000  # an adopted object is dropped if its other slices have not turned up by then
    wait_ms_max: int = 60_000
    batch_max: int = 16_384
    key_bytes_max: int = 1_024
    copies_max: int = 16
    slices_max: int = 65_536  # of one object
    waiting_max: int = 1_024  # calls that wait for space, and calls that wait for a write
    waiting_per_client_max: int = 256  # of those that wait for space
    writes_per_client_max: int = 65_536
    writes_max: int = 1 << 20
    leased_max: int = 1 << 18  # objects in the leases that can be given back before their time
    remembered_max: int = 1 << 18  # keys in the answers kept for retries
    evictions_per_step_max: int = 512
    adopted_per_step_max: int = 512  # units of work on an inventory, two or three a copy


@dataclass(slots=True)
class State:
    """Everything the core knows. `now` is the time of the step that is running."""

    config: Config
    epoch: int
    now: int = 0
    salt: int = 0  # where the write ids of an epoch begin
    objects: dict[bytes, Object] = field(default_factory=dict)
    partial: dict[int, Object] = field(default_factory=dict)  # by write id: adopted, slices still missing
    names: SortedList[bytes] = field(default_factory=SortedList)  # keys of `objects`
    object_bytes: int = 0
    missing: dict[Object, int] = field(default_factory=dict)  # copies that readable objects lack, as of the last look
    nodes: dict[str, Node] = field(default_factory=dict)
    streams: dict[int, Node] = field(default_factory=dict)
    segments: dict[int, Segment] = field(default_factory=dict)
    writes: dict[int, Write] = field(default_factory=dict)
    writing: dict[bytes, int] = field(default_factory=dict)  # key -> writes in flight
    replaced: dict[bytes, int] = field(default_factory=dict)  # of these keys -> the last write that replaced
    effects: list[Effect] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    asked: dict[str, Asked] = field(default_factory=lambda: {"lookup": Asked(), "match": Asked()})
    space_freed: bool = False  # in this step: waiting puts may go on
    ended_keys: list[bytes] = field(default_factory=list)  # of writes that ended in this step: matches may go on
    expiring: SortedDict[tuple[int, int], Object] = field(default_factory=SortedDict)  # by (end, write id)
    overdue: bool = False  # objects have expired that are still among `objects`
    pinned_writes: dict[int, Write] = field(default_factory=dict)  # of `writes`, those pinned hard
    draining: int = 0  # nodes
    pressed: dict[int, Segment] = field(default_factory=dict)  # to be looked at for eviction at the end of the step
    unreached: list[int] = field(default_factory=list)  # segments that clients could not reach, as told in this step
    next_write_id: int = 0
    next_number: int = 0
    timers: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)
    absences: Absences = field(default_factory=Absences)
    read_until: dict[Copy, int] = field(default_factory=dict)  # sources of repairs under way
    rest: Rest = field(default_factory=Rest)
    traffic: Traffic = field(init=False)
    began_at: int = field(init=False)

    def __post_init__(self) -> None:
        self.traffic, self.began_at = Traffic(self.objects), self.now
        self.begin_epoch(self.epoch)

    def begin_epoch(self, epoch: int) -> None:
        """From now on write ids are greater than those of earlier epochs."""
        self.epoch = epoch
        self.next_write_id = max(self.next_write_id, (epoch << 32) + self.salt)

    def attached(self) -> int:
        """Nodes that answer now."""
        return sum(not node.phase.is_suspect for node in self.nodes.values())

    def open_segments(self) -> list[Segment]:
        """Where copies may be placed."""
        return [segment for segment in self.segments.values() if segment.live and not segment.node.draining]

    def holders(self, part: Slice) -> list[Node]:
        """The nodes with a copy of a slice, suspect ones included."""
        segments = self.segments
        return [segments[copy.segment].node for copy in part.copies if copy.segment in segments]

    def live_copies(self, part: Slice) -> list[Copy]:
        segments = self.segments
        return [copy for copy in part.copies if copy.segment in segments and segments[copy.segment].live]

    def staying_copies(self, part: Slice) -> list[Copy]:
        """Live copies that are not on draining nodes."""
        return [copy for copy in self.live_copies(part) if not self.segments[copy.segment].node.draining]

    def count_copies(self, obj: Object) -> int:
        """Live copies of the slice with the fewest, 0 if the object has gone. Keeps `missing` up to date."""
        left = min(len(self.live_copies(part)) for part in obj.slices) if self.is_there(obj) else 0
        if 0 < left < obj.wanted:
            self.missing[obj] = obj.wanted - left
        else:
            self.missing.pop(obj, None)
        return left

    def is_there(self, obj: Object) -> bool:
        """Whether it is still the object of its key."""
        return self.objects.get(obj.key) is obj

    def has(self, key: bytes) -> bool:
        """Whether the key can be read now."""
        obj = self.objects.get(key)
        return obj is not None and self.readable(obj)

    def readable(self, obj: Object) -> bool:
        """Whether it has not expired and every slice has a copy on a live node."""
        return not 0 < obj.expires_at <= self.now and self.at_hand(obj.slices)

    def at_hand(self, slices: Sequence[Slice]) -> bool:
        """Whether each has a copy on a live node."""
        segments = self.segments
        for part in slices:
            for copy in part.copies:
                segment = segments.get(copy.segment)
                if segment is not None and segment.live:
                    break
            else:
                return False
        return True

    def note(self, text: str, *, grave: bool = False) -> None:
        """A line for the operators' log."""
        self.effects.append(Note(text, grave))

    def close(self, stream: int, reason: str) -> None:
        """End a node's stream, telling it why."""
        self.effects.append(Close(stream, self.epoch, reason))

    def number(self) -> int:
        """A number that no other segment, command or timer of this reign has."""
        self.next_number += 1
        return self.next_number

    def at(self, when: int, action: Callable[[], None]) -> None:
        """Run `action` in the first step at or after `when`. The action checks whether it is still wanted."""
        heapq.heappush(self.timers, (when, self.number(), action))
