"""Room in the segments: what is evicted above the watermark, for waiting puts, and for copies that are made again.

In which order objects go, `eviction` decides. What is being read makes no room: its space comes back too late.
Keeps invariants 11 (an allocation that fits succeeds in the end) and 12 (bounded work a step).
"""

from collections.abc import Callable
from typing import NamedTuple

from services.master.core.allocator import aligned
from services.master.core.catalogue import Catalogue
from services.master.core.cluster import Node, Segment
from services.master.core.eviction import Worth
from services.master.core.messages import Pin
from services.master.core.objects import Object, Slice
from services.master.core.phases import Phase
from services.master.core.tables import State

HIGHEST: Worth = (Pin.HARD, float("inf"))  # nothing could go


class Prospects(NamedTuple):
    """For the copies to be made in this step."""

    room: int  # bytes below the watermark, in the emptiest segment
    least: dict[int, Worth]  # by segment: the worth of what would go first there; the lowest first


class Room:
    def __init__(self, state: State, catalogue: Catalogue) -> None:
        self.state = state
        self.catalogue = catalogue
        self.displaceable = 0  # objects that may still go for copies made again in this step

    # ---- eviction --------------------------------------------------------------------------------

    def evict_pressed(self) -> None:
        """Bring segments above the watermark back to it; bounded work a step."""
        budget = self.state.config.evictions_per_step_max
        for segment in list(self.state.pressed.values()):
            excess = segment.excess(0)
            cut_short = False
            if excess > 0 and segment.live:
                evicted, cut_short = self._evict(segment, excess, budget)
                budget -= evicted
            if cut_short or budget <= 0:
                self.state.at(self.state.now, lambda: None)  # the rest in the next step
                return
            del self.state.pressed[segment.number]

    def make_room(self, size: int) -> None:
        """For a waiting put: evict where what is free or on its way back would not hold it."""
        largest = aligned(min(size, self.state.config.slice_bytes))
        segments = [segment for segment in self.state.open_segments() if segment.could_hold(largest)]
        need = max(largest, size // max(1, len(segments)))
        short = [
            segment
            for segment in segments
            if segment.allocator.largest_free_bytes < largest or segment.allocator.free_bytes < need
        ]
        if not short and not any(segment.soon_bytes for segment in segments):
            # Each has its share free and the put still waits: some must hold more, or their room is in small pieces.
            slices = -(-size // self.state.config.slice_bytes)
            short = [segment for segment in segments if not segment.allocator.fits(largest, slices)]
            need = largest
        for segment in short:
            free = segment.allocator.free_bytes
            # Enough bytes and none on their way: the pieces are too small, so more has to go.
            if free + segment.soon_bytes < need or not segment.soon_bytes:
                _, cut_short = self._evict(segment, need, self.state.config.evictions_per_step_max)
                if cut_short:
                    self.state.at(self.state.now, lambda: None)  # waiting puts look again in every step

    def _evict(
        self, segment: Segment, wanted_bytes: int, budget: int, below: Worth | None = None, spared: Object | None = None
    ) -> tuple[int, bool]:
        """Evict about `wanted_bytes`. Returns how many objects went, and whether the next step may find more."""

        def bytes_here(obj: Object) -> int:
            return sum(
                [aligned(part.length) for part in obj.slices for copy in part.copies if copy.segment == segment.number]
            )

        def is_held(obj: Object) -> bool:
            return obj is spared or self.is_read(obj)

        victims, cut_short = segment.residents.victims(
            wanted_bytes, count_max=budget, size_of=bytes_here, held=is_held, below=below
        )
        for obj in victims:
            self.evict(obj)
        return len(victims), cut_short

    def evict(self, obj: Object) -> None:
        self.state.counters.evicted_objects += 1
        self.state.counters.evicted_bytes += obj.size
        self.catalogue.discard(obj)

    def is_read(self, obj: Object) -> bool:
        """Whether it is leased or the source of a transfer, so that its space would come back too late."""
        if obj.lease_until > self.state.now:
            return True
        sources = self.state.read_until
        return bool(sources) and any(copy in sources for part in obj.slices for copy in part.copies)

    # ---- room for copies made again --------------------------------------------------------------

    def displace(self, obj: Object, part: Slice, prospects: Prospects, can_take: Callable[[Node], bool]) -> bool:
        """For one more copy of a slice evict what is worth less than its object, on one node. Whether any went.

        What goes is worth less and goes as a whole, so that no two objects make room for each other in turn.
        """
        worth, size, least = self._worth(obj), aligned(part.length), prospects.least
        takers = [s for s in self.takers(part) if least.get(s.number, worth) < worth and can_take(s.node)]
        if any(segment.excess(size) <= 0 and segment.soon_bytes >= size for segment in takers):
            return False  # room is on its way
        holders = self.state.holders(part)

        def rank(segment: Segment) -> tuple[bool, bool, Worth, int]:
            shares_zone = any(node.zone == segment.node.zone for node in holders)
            shares_host = any(node.host_id == segment.node.host_id for node in holders)
            return shares_zone, shares_host, least[segment.number], segment.number

        for segment in sorted(takers, key=rank):
            wanted_bytes = self._to_evict(segment, size)
            evicted, _ = self._evict(segment, wanted_bytes, max(1, self.displaceable), worth, obj)
            self.displaceable -= evicted + 1  # looking costs, too
            self.state.counters.displaced_objects += evicted
            least[segment.number] = segment.residents.least() or HIGHEST
            if evicted:
                return True
        return False

    def is_worth_least(self, obj: Object, part: Slice) -> bool:
        """Whether one more copy of a slice would be the first to go wherever it could be made."""
        worth, size, takers = self._worth(obj), aligned(part.length), self.takers(part)

        def would_go(segment: Segment) -> bool:
            least = segment.residents.least()
            return segment.residents.is_first(obj) or (least is not None and least >= worth)

        return bool(takers) and all(would_go(segment) and self._to_evict(segment, size) for segment in takers)

    def prospects(self) -> Prospects:
        """Nothing may go while a node attaches, which may have room, nor while room rests that will be free."""
        segments = self.state.open_segments()
        room = max((-segment.excess(0) for segment in segments), default=0)
        is_attaching = any(node.phase is Phase.ATTACHING for node in self.state.nodes.values())
        rests = self.state.rest.left_ms(self.state.now) > 0
        leasts = [] if is_attaching or rests else [(s.residents.least() or HIGHEST, s.number) for s in segments]
        return Prospects(room, {number: least for least, number in sorted(leasts)})

    def is_hopeless(self, obj: Object, prospects: Prospects) -> bool:
        """Whether no slice of the object can have one more copy."""
        if prospects.room >= aligned(obj.slices[-1].length):
            return False
        worth, holders = self._worth(obj), self.state.holders(obj.slices[0]) if len(obj.slices) == 1 else []
        for number, least in prospects.least.items():
            if worth <= least:
                break
            if self.state.segments[number].node not in holders:
                return False
        return True

    def _worth(self, obj: Object) -> Worth:
        return max(self.state.segments[copy.segment].residents.worth(obj) for copy in obj.slices[0].copies)

    def takers(self, part: Slice) -> list[Segment]:
        """Where one more copy of a slice could be, if others made room."""
        size, holders = aligned(part.length), self.state.holders(part)
        return [
            segment
            for segment in self.state.open_segments()
            if segment.node not in holders
            and segment.node.probed_at is None
            and segment.limit_bytes - segment.pinned_bytes >= size
        ]

    def _to_evict(self, segment: Segment, size: int) -> int:
        """Bytes that must go so that `size` fit below the watermark; 0 if the room is there or on its way."""
        excess = segment.excess(size)
        if excess > 0:
            return excess
        is_to_come = max(segment.allocator.largest_free_bytes, segment.quarantined_bytes) >= size
        return 0 if is_to_come else size  # else the free pieces are too small
