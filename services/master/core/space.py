"""The life of an extent once it is placed: when its space comes back, what is evicted to make room, and for what.

Keeps invariants 3 (extents disjoint, bytes add up) and 7 (no reuse while a lease, a late write or the node's own record
could still touch an extent).
"""

from collections.abc import Callable
from typing import NamedTuple

from services.master.core.allocator import aligned
from services.master.core.calls import Calls
from services.master.core.eviction import Worth
from services.master.core.messages import Forget, Pin
from services.master.core.objects import Copy, Object, Slice
from services.master.core.placing import Placing
from services.master.core.runs import unlink
from services.master.core.tables import Node, Phase, Quarantined, Segment, State

_HARD = Pin.HARD  # members of an enum are slow to look up
HIGHEST: Worth = (Pin.HARD, float("inf"))  # there is nothing that could go
EXTENTS_PER_FORGET = 8_192  # of either kind: a message has its bounds, and a node does other things, too
WATCHED_PER_FORGET = 64  # a writer that was stopped holds up no more extents than these


class Prospects(NamedTuple):
    """Of copies to be made in this step."""

    room: int  # bytes below the watermark, where there are most
    least: dict[int, Worth]  # by segment: of what would be the first to go; the lowest first


class Space(Placing):
    def __init__(self, state: State, calls: Calls) -> None:
        super().__init__(state)
        self.calls = calls
        self.displaceable = 0  # objects that may yet go in this step for copies made again

    # ---- life of an extent -----------------------------------------------------------------------

    def settle(self, copy: Copy, length: int) -> None:
        """Reserved becomes live."""
        segment = self.state.segments[copy.segment]
        segment.reserved_bytes -= aligned(length)
        segment.live_bytes += aligned(length)
        segment.copies += 1

    def unsettle(self, copy: Copy, length: int) -> None:
        """Live becomes nobody's: `release` must follow at once."""
        segment = self.state.segments[copy.segment]
        segment.live_bytes -= aligned(length)
        segment.reserved_bytes += aligned(length)
        segment.copies -= 1

    def release(self, copy: Copy, length: int, write_id: int, *, not_before: int, recorded: bool) -> Quarantined | None:
        """A reserved extent's way back to the allocator; at once when nothing can touch it any more.

        `recorded`: its node may hold it in its index, and has to forget it first.
        """
        segment = self.state.segments.get(copy.segment)
        if segment is None or segment.gone:
            return None
        segment.reserved_bytes -= aligned(length)
        assert segment.reserved_bytes >= 0, (segment.number, segment.reserved_bytes)
        return self.quarantine(segment, copy.offset, length, write_id, not_before=not_before, recorded=recorded)

    def quarantine(
        self, segment: Segment, offset: int, length: int, write_id: int, *, not_before: int, recorded: bool
    ) -> Quarantined | None:
        """Keep an extent that is out of every other account until it is safe to reuse.

        One that is not recorded rests because a write to it may go on: when its time has come its node is asked.
        """
        if not recorded and not_before <= self.state.now:
            segment.allocator.free(offset, length)
            self.state.space_freed = True
            return None
        entry = Quarantined(segment, offset, length, write_id, not_before, recorded, not_before <= self.state.now)
        assert offset not in segment.quarantine, (segment.number, offset)
        segment.quarantine[offset] = entry
        segment.quarantined_bytes += aligned(length)
        if entry.soon:
            segment.soon_bytes += aligned(length)
        else:
            self.state.at(not_before, lambda: self._try_free(entry))
        if recorded:
            segment.node.to_forget.append(entry)
        return entry

    def forgotten(self, entry: Quarantined) -> None:
        """The node no longer holds the extent, nor does anybody write there by shared memory."""
        entry.forgetting = entry.watched = False
        self.settle_remove(entry)
        self._try_free(entry)

    def settle_remove(self, entry: Quarantined) -> None:
        if entry.remove is not None:
            self.calls.removed(entry.remove)
            entry.remove = None

    def _try_free(self, entry: Quarantined) -> None:
        segment = entry.segment
        if (
            segment.gone
            or segment.quarantine.get(entry.offset) is not entry
            or entry.forgetting
            or entry.not_before > self.state.now
        ):
            return
        if entry.watched:
            entry.forgetting = True
            segment.node.to_forget.append(entry)
            return
        del segment.quarantine[entry.offset]
        segment.quarantined_bytes -= aligned(entry.length)
        if entry.soon:
            segment.soon_bytes -= aligned(entry.length)
        segment.allocator.free(entry.offset, entry.length)
        self.state.space_freed = True

    # ---- objects on segments ---------------------------------------------------------------------

    def settle_all(self, obj: Object) -> None:
        """Reserved becomes live for a whole object, evictable from now on."""
        segments, returns, pinned = self.state.segments, self.state.traffic.put(obj), obj.pin == _HARD
        for part in obj.slices:
            size = aligned(part.length)
            for number, _ in part.copies:
                segment = segments[number]
                segment.reserved_bytes -= size
                segment.live_bytes += size
                segment.copies += 1
                if pinned:
                    segment.pinned_bytes += size
                segment.residents.add(obj, returns)

    def house(self, obj: Object, segment: Segment, length: int) -> None:
        """One more copy of an object lies on the segment: it counts there for what it counts elsewhere."""
        if obj.pin == Pin.HARD:
            segment.pinned_bytes += aligned(length)
        segments = self.state.segments
        holders = [segments[copy.segment] for part in obj.slices for copy in part.copies if copy.segment in segments]
        if holders == [segment]:  # it has this copy only, as nearly all that are adopted
            segment.residents.add(obj, 0)
        elif obj not in segment.residents:
            segment.residents.add(obj, max(holder.residents.returns(obj) or 0 for holder in holders))

    def show(self, obj: Object) -> None:
        """From now on the object can be found."""
        state, key = self.state, obj.key
        assert key not in state.objects
        for part in obj.slices:
            assert part.copies
        state.objects[key] = obj
        state.names.add(key)
        state.object_bytes += obj.size
        if obj.expires_at:
            state.expiring[obj.expires_at, obj.write_id] = obj

    def discard(self, obj: Object) -> list[Quarantined]:
        """Drop an object and all its copies. Its space returns once leases ended and nodes forgot it."""
        if self.state.objects.get(obj.key) is obj:
            del self.state.objects[obj.key]
            unlink(obj)
            self.state.names.remove(obj.key)
            self.state.object_bytes -= obj.size
            self.state.missing.pop(obj, None)
            if obj.expires_at:
                del self.state.expiring[obj.expires_at, obj.write_id]
        elif self.state.partial.get(obj.key) is obj:
            del self.state.partial[obj.key]
        entries = []
        for part in obj.slices:
            for copy in list(part.copies):
                entry = self.drop_copy(obj, part, copy)
                if entry is not None:
                    entries.append(entry)
        return entries

    def drop_copy(self, obj: Object, part: Slice, copy: Copy) -> Quarantined | None:
        """Take one copy from an object; the caller sees to objects that lost their last."""
        part.copies.remove(copy)
        segment = self.state.segments.get(copy.segment)
        if segment is None:
            return None
        self.unsettle(copy, part.length)
        if obj.pin == Pin.HARD:
            segment.pinned_bytes -= aligned(part.length)
        if not any(other.segment == copy.segment for each in obj.slices for other in each.copies):
            segment.residents.discard(obj)
        not_before = max(obj.lease_until, self.state.read_until.get(copy, 0))
        return self.release(copy, part.length, obj.write_id, not_before=not_before, recorded=True)

    # ---- eviction --------------------------------------------------------------------------------

    def evict_pressed(self) -> None:
        """Bring segments above the watermark back to it; bounded work a step."""
        budget = self.state.config.evictions_per_step_max
        for segment in list(self.pressed.values()):
            excess = self._excess(segment, 0)
            cut_short = False
            if excess > 0 and segment.live:
                evicted, cut_short = self._evict(segment, excess, budget)
                budget -= evicted
            if cut_short or budget <= 0:
                self.state.at(self.state.now, lambda: None)  # the rest in the next step
                return
            del self.pressed[segment.number]

    def make_room(self, size: int) -> None:
        """For a put that waits: evict where what is free or on its way back would not hold it."""
        largest = aligned(min(size, self.state.config.slice_bytes))
        segments = [segment for segment in self._open() if self._could_hold(segment, largest)]
        need = max(largest, size // max(1, len(segments)))
        short = [
            segment
            for segment in segments
            if segment.allocator.largest_free_bytes < largest or segment.allocator.free_bytes < need
        ]
        if not short and not any(segment.soon_bytes for segment in segments):
            # Each has its share free, and yet the put waits: some have to hold more, or their room is in small pieces.
            slices = -(-size // self.state.config.slice_bytes)
            short = [segment for segment in segments if not segment.allocator.fits(largest, slices)]
            need = largest
        for segment in short:
            free = segment.allocator.free_bytes
            # Enough bytes but none on their way: they lie in pieces too small, so more has to go.
            if free + segment.soon_bytes < need or not segment.soon_bytes:
                _, cut_short = self._evict(segment, need, self.state.config.evictions_per_step_max)
                if cut_short:
                    self.state.at(self.state.now, lambda: None)  # waiting puts look again in every step

    def _evict(
        self, segment: Segment, wanted_bytes: int, budget: int, below: Worth | None = None, spared: Object | None = None
    ) -> tuple[int, bool]:
        """Evict about `wanted_bytes`; how many objects went, and whether the next step may find more."""

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
        self.discard(obj)

    def is_read(self, obj: Object) -> bool:
        """Leased, or the source of a repair: its space would not come back for a while, so that it makes no room."""
        if obj.lease_until > self.state.now:
            return True
        sources = self.state.read_until
        return bool(sources) and any(copy in sources for part in obj.slices for copy in part.copies)

    # ---- room for copies made again --------------------------------------------------------------

    def displace(self, obj: Object, part: Slice, prospects: Prospects, can_take: Callable[[Node], bool]) -> bool:
        """For one more copy of a slice evict what is worth less than its object, on one node; whether anything went.

        What goes is worth less, and goes as a whole: so no two objects make room for each other in turn.
        """
        worth, size, least = self._worth(obj), aligned(part.length), prospects.least
        takers = [s for s in self._takers(part) if least.get(s.number, worth) < worth and can_take(s.node)]
        if any(self._excess(segment, size) <= 0 and segment.soon_bytes >= size for segment in takers):
            return False  # room is on its way
        holders = self.holders(part)

        def rank(segment: Segment) -> tuple[bool, bool, Worth, int]:
            shares_zone = any(node.zone == segment.node.zone for node in holders)
            shares_host = any(node.host_id == segment.node.host_id for node in holders)
            return shares_zone, shares_host, least[segment.number], segment.number

        for segment in sorted(takers, key=rank):
            wanted_bytes = self._to_evict(segment, size)
            evicted, _ = self._evict(segment, wanted_bytes, max(1, self.displaceable), worth, obj)
            self.displaceable -= evicted + 1  # to look costs, too
            self.state.counters.displaced_objects += evicted
            least[segment.number] = segment.residents.least() or HIGHEST
            if evicted:
                return True
        return False

    def is_worth_least(self, obj: Object, part: Slice) -> bool:
        """Whether one more copy of a slice would be the first to go wherever it could be made."""
        worth, size, takers = self._worth(obj), aligned(part.length), self._takers(part)

        def would_go(segment: Segment) -> bool:
            least = segment.residents.least()
            return segment.residents.is_first(obj) or (least is not None and least >= worth)

        return bool(takers) and all(would_go(segment) and self._to_evict(segment, size) for segment in takers)

    def prospects(self) -> Prospects:
        """Nothing is to go while a node attaches, which may have room, nor while room rests that will be free."""
        segments = self._open()
        room = max((-self._excess(segment, 0) for segment in segments), default=0)
        is_attaching = any(node.phase is Phase.ATTACHING for node in self.state.nodes.values())
        rests = self.state.rest.left_ms(self.state.now) > 0
        leasts = [] if is_attaching or rests else [(s.residents.least() or HIGHEST, s.number) for s in segments]
        return Prospects(room, {number: least for least, number in sorted(leasts)})

    def is_hopeless(self, obj: Object, prospects: Prospects) -> bool:
        """Whether no slice of the object can have one more copy."""
        if prospects.room >= aligned(obj.slices[-1].length):
            return False
        worth, holders = self._worth(obj), self.holders(obj.slices[0]) if len(obj.slices) == 1 else []
        for number, least in prospects.least.items():
            if worth <= least:
                break
            if self.state.segments[number].node not in holders:
                return False
        return True

    def _worth(self, obj: Object) -> Worth:
        return max(self.state.segments[copy.segment].residents.worth(obj) for copy in obj.slices[0].copies)

    def _takers(self, part: Slice) -> list[Segment]:
        """Where one more copy of a slice could be, if others made room."""
        size, holders = aligned(part.length), self.holders(part)
        return [
            segment
            for segment in self._open()
            if segment.node not in holders
            and segment.node.probed_at is None
            and self._limit(segment) - segment.pinned_bytes >= size
        ]

    def _to_evict(self, segment: Segment, size: int) -> int:
        """Bytes that have to go so that `size` fit below the watermark; 0 where the room is there, or on its way."""
        excess = self._excess(segment, size)
        if excess > 0:
            return excess
        is_to_come = max(segment.allocator.largest_free_bytes, segment.quarantined_bytes) >= size
        return 0 if is_to_come else size  # else what is free is in pieces too small

    # ---- messages to nodes -----------------------------------------------------------------------

    def flush_forgets(self) -> None:
        """One Forget a node and step if it is not too long, and others for what may still be written: their answers can
        take long.

        A node without a stream is told when it attaches again.
        """
        for node in self.state.nodes.values():
            if node.stream is None or node.phase is Phase.ATTACHING or not (node.to_forget or node.strays):
                continue
            strays, node.strays = node.strays, []
            batch = [entry for entry in node.to_forget if entry.forgetting and not entry.segment.gone]
            node.to_forget = []
            recorded = [entry for entry in batch if not entry.watched]
            for start in range(0, max(len(recorded), len(strays)), EXTENTS_PER_FORGET):
                end = start + EXTENTS_PER_FORGET
                self._tell(node, recorded[start:end], strays[start:end], [])
            watched = [entry for entry in batch if entry.watched]
            for start in range(0, len(watched), WATCHED_PER_FORGET):
                part = watched[start : start + WATCHED_PER_FORGET]
                self._tell(node, part, [], [entry.length for entry in part])

    def _tell(
        self, node: Node, entries: list[Quarantined], strays: list[tuple[int, int, int]], lengths: list[int]
    ) -> None:
        assert node.stream is not None
        command_id = self.state.number()
        node.forgetting[command_id] = entries
        extents = [(entry.segment.number, entry.offset, entry.write_id) for entry in entries]
        self.state.effects.append(Forget(node.stream, command_id, strays + extents, lengths))
