"""What a node says it holds, against what the master knows: agreed, adopted, or to be forgotten (invariant 8).

Begins once an inventory is complete and ends before anything is placed on the node. Claims that contradict each other
or the master are dropped, never served. Each step does a bounded part of it, and others are served in between: what is
known may change from one part to the next.
"""

from collections import deque
from collections.abc import Callable, Generator
from heapq import merge
from itertools import islice

from services.master.core.absences import Away
from services.master.core.allocator import ALIGN_BYTES, Allocator, aligned
from services.master.core.catalogue import Catalogue
from services.master.core.cluster import Node, Segment
from services.master.core.extents import Extents
from services.master.core.messages import HeldCopy, Pin
from services.master.core.objects import Copy, Object, from_held
from services.master.core.quarantine import UNACKNOWLEDGED, Hold
from services.master.core.tables import State

Claims = dict[int, HeldCopy]  # by offset
Extent = tuple[int, int]  # offset and size
Work = Generator[None, None, None]
PINS = frozenset(Pin)
SORTED_MAX = 1_024  # objects sorted at a time


class Adoption:
    """Of one node, which stays ATTACHING until this is done. If its stream breaks before, call end()."""

    def __init__(
        self,
        state: State,
        extents: Extents,
        catalogue: Catalogue,
        node: Node,
        away: Away | None,
        inventory: list[HeldCopy],
        lacking: Callable[[Object], None],
    ) -> None:
        """`away`: what the node missed, if it had been given up. `lacking` is told of objects that lost a copy here."""
        self.state = state
        self.extents = extents
        self.catalogue = catalogue
        self.lacking = lacking
        self.node = node
        self.away = away
        self.began = state.now
        # Readers that an earlier master sent here may still be reading.
        self.leases_end = state.now + state.config.lease_ms
        self._rest_until = state.now + state.config.write_ttl_ms + state.config.late_write_ms
        # By segment, in order: what was free and may turn out to be held. Nobody else sees it until then.
        self.unclaimed: dict[int, deque[Extent]] = {}
        self._work = self._run(inventory)

    def advance(self, budget: int) -> bool:
        """Do `budget` units of work; True once all is done."""
        return sum(1 for _ in islice(self._work, budget)) < budget

    def end(self) -> None:
        """Give up half-way. The node will claim again what is not adopted yet."""
        self._work.close()
        for number, extents in self.unclaimed.items():
            for offset, size in extents:
                self.state.segments[number].allocator.free(offset, size)
        self.unclaimed = {}

    def _run(self, inventory: list[HeldCopy]) -> Work:
        """Yields after each unit of work: a step may end there."""
        claims: dict[int, Claims] = {segment.number: {} for segment in self.node.segments}
        while inventory:
            claim = inventory.pop()
            if claim.segment in claims and self._plausible(claim, self.state.segments[claim.segment]):
                claims[claim.segment][claim.offset] = claim
            else:
                self.state.counters.dropped_claims += 1
            yield
        # In one go: what is dropped from now on must be forgotten here too.
        self.node.to_forget, self.node.strays = [], []
        known = {segment.number: list(segment.residents) for segment in self.node.segments}
        for segment in self.node.segments:
            self._pass_over_writes(segment, claims[segment.number])
            self._settle_quarantine(segment, claims[segment.number])
        for segment in self.node.segments:
            for obj in known[segment.number]:
                self._agree(obj, segment, claims[segment.number])
                yield
            yield from self._adopt_all(segment, claims[segment.number])

    def _plausible(self, claim: HeldCopy, segment: Segment) -> bool:
        return (
            claim.offset >= 0
            and claim.offset % ALIGN_BYTES == 0
            and claim.length > 0
            and claim.offset + aligned(claim.length) <= segment.capacity
            and claim.object_size > 0
            and 0 <= claim.slice_index < claim.slice_count <= self.state.config.slices_max
            and 0 < len(claim.key) <= self.state.config.key_bytes_max
            and 0 <= claim.expires_ms <= self.began + self.state.config.ttl_ms_max
            and claim.pin in PINS
        )

    def _pass_over_writes(self, segment: Segment, claims: Claims) -> None:
        """Writes that this node has recorded and others are still recording."""
        for write in self.state.writes.values():
            for part in write.slices:
                for copy in part.copies:
                    claim = claims.get(copy.offset) if copy.segment == segment.number else None
                    if claim is not None and claim.write_id == write.write_id:
                        del claims[copy.offset]

    def _settle_quarantine(self, segment: Segment, claims: Claims) -> None:
        for entry in list(segment.quarantine.values()):
            if entry.hold not in UNACKNOWLEDGED:
                continue
            claim = claims.get(entry.offset)
            if claim is not None and claim.write_id == entry.write_id:
                del claims[entry.offset]
                self.node.to_forget.append(entry)
            elif entry.hold is Hold.WATCHED:
                self.node.to_forget.append(entry)  # the node has not said yet that nobody writes there
            else:
                self.extents.forgotten(entry)

    def _agree(self, obj: Object, segment: Segment, claims: Claims) -> None:
        """Strike out the claims to an object the master knows; drop the copies the node no longer has."""
        state = self.state
        if state.objects.get(obj.key) is not obj and state.partial.get(obj.write_id) is not obj:
            return  # it went meanwhile
        for part in obj.slices:
            for copy in [copy for copy in part.copies if copy.segment == segment.number]:
                claim = claims.get(copy.offset)
                if claim is not None and (claim.write_id, claim.length) == (obj.write_id, part.length):
                    del claims[copy.offset]
                    continue
                state.counters.lost_copies += 1
                self.catalogue.drop_copy(obj, part, copy)
        if not all(part.copies for part in obj.slices) and obj.write_id not in state.partial:
            state.counters.lost_objects += 1
            self.catalogue.discard(obj)
        else:
            self.lacking(obj)

    # ---- what the master did not know ------------------------------------------------------------

    def _adopt_all(self, segment: Segment, claims: Claims) -> Work:
        self.unclaimed[segment.number] = deque(segment.allocator.extents())
        segment.allocator = Allocator(segment.capacity, [(0, segment.capacity)])
        adopted: list[list[Object]] = [[]]
        for offset in sorted(claims):
            claim = claims.pop(offset)  # one by one: to free a million of them at once takes a while, too
            yield from self._pass_over(segment, offset)
            if self._take(segment, offset, aligned(claim.length)):
                obj = self._adopt(segment, claim)
                if obj is not None:
                    adopted[-1].append(obj)
                if len(adopted[-1]) == SORTED_MAX:
                    adopted[-1].sort(key=_put_order)
                    adopted.append([])
            else:
                self.state.counters.dropped_claims += 1
                self.node.strays.append((segment.number, offset, claim.write_id))  # the extent belongs to another
            yield
        yield from self._pass_over(segment, segment.capacity)
        if segment.fenced and segment.quarantined_bytes:
            self.state.rest.extend(self.began, self._rest_until)
        segment.fenced = False
        adopted[-1].sort(key=_put_order)
        for obj in merge(*adopted, key=_put_order):
            segment.residents.put_last(obj)
            yield

    def _pass_over(self, segment: Segment, end: int) -> Work:
        """Nobody holds what comes before `end`: it is free, after a rest if an earlier master may have promised it."""
        config, extents = self.state.config, self.unclaimed[segment.number]
        piece = aligned(config.slice_bytes)  # a stopped writer holds up only the pieces it is in
        while extents and extents[0][0] < end:
            begin, size = extents.popleft()
            length = min(size, end - begin, piece if segment.fenced else size)
            if length < size:
                extents.appendleft((begin + length, size - length))
            if segment.fenced:
                self.extents.quarantine(segment, begin, length, 0, not_before=self._rest_until, recorded=False)
            else:
                segment.allocator.free(begin, length)
            yield

    def _take(self, segment: Segment, offset: int, size: int) -> bool:
        """Whether these bytes were free; the claim has them now. What comes before was passed over."""
        extents = self.unclaimed[segment.number]
        if not extents or extents[0][0] != offset or extents[0][1] < size:
            return False
        _, length = extents.popleft()
        if length > size:
            extents.appendleft((offset + size, length - size))
        return True

    def _adopt(self, segment: Segment, claim: HeldCopy) -> Object | None:
        """The object it is a copy of; None if the claim was dropped."""
        state = self.state
        if self.away is not None and self.away.is_stale(claim):
            self._drop(segment, claim)
            return None
        shown = state.objects.get(claim.key)
        is_newer = shown is None or shown.write_id < claim.write_id
        obj = state.partial.get(claim.write_id) if is_newer else shown
        is_new = obj is None
        if obj is None:
            obj = from_held(claim, self.leases_end)
            obj.used = state.traffic.uses
        elif not self._fits(obj, claim):
            self._drop(segment, claim)
            return None
        part = obj.slices[claim.slice_index]
        part.length, part.checksum = claim.length, claim.checksum
        part.copies.append(Copy(segment.number, claim.offset))
        obj.lease_until = max(obj.lease_until, self.leases_end)
        obj.held_until = max(obj.held_until, self.leases_end)  # readers of the former reign
        segment.adopt(aligned(claim.length), obj.pin)
        self.catalogue.house(obj, segment)
        state.counters.adopted_copies += 1
        is_whole = all([each.copies for each in obj.slices])
        if is_new and not is_whole:
            state.partial[obj.write_id] = obj
            state.at(state.now + state.config.partial_ms, lambda: self._give_up(obj))
        elif is_new or (is_whole and state.partial.pop(obj.write_id, None) is not None):
            if shown is not None:  # of an older put
                state.absences.note_removed((obj.key,), obj.write_id - 1)
            self.catalogue.show(obj)
        return obj

    def _drop(self, segment: Segment, claim: HeldCopy) -> None:
        self.state.counters.dropped_claims += 1
        self.extents.quarantine(
            segment, claim.offset, claim.length, claim.write_id, not_before=self.leases_end, recorded=True
        )

    def _fits(self, obj: Object, claim: HeldCopy) -> bool:
        """Whether the claim is one more copy of this object."""
        if (obj.write_id, obj.key, obj.size) != (claim.write_id, claim.key, claim.object_size):
            return False
        if len(obj.slices) != claim.slice_count:
            return False
        part = obj.slices[claim.slice_index]
        if part.copies and (part.length, part.checksum) != (claim.length, claim.checksum):
            return False
        segments = self.state.segments
        return not any(copy.segment in segments and segments[copy.segment].node is self.node for copy in part.copies)

    def _give_up(self, obj: Object) -> None:
        if self.state.partial.get(obj.write_id) is obj:
            self.catalogue.discard(obj)


def _put_order(obj: Object) -> tuple[int, int]:
    """The leaves of a chain before its root."""
    return obj.write_id - obj.depth, -obj.depth
