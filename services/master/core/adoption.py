"""What a node says it holds, against what the master knows: agreed, adopted, or to be forgotten (invariant 8).

Runs once an inventory is complete and before anything is placed on the node. Claims that contradict each other or the
master are dropped, never served.
"""

from bisect import bisect_right

from services.master.core.absences import Away
from services.master.core.allocator import Allocator, aligned
from services.master.core.messages import HeldCopy, Pin
from services.master.core.space import Space
from services.master.core.tables import Copy, Node, Object, Segment, Slice, State

Claims = dict[int, HeldCopy]  # by offset
PINS = frozenset(Pin)


class Adoption:
    def __init__(self, state: State, space: Space, node: Node, away: Away | None) -> None:
        """`away`: what the node missed, where it had been given up."""
        self.state = state
        self.space = space
        self.node = node
        self.away = away
        # Readers that an earlier master sent here may still be reading.
        self.leases_end = state.now + state.config.lease_ms

    def run(self, inventory: list[HeldCopy]) -> None:
        claims: dict[int, Claims] = {segment.number: {} for segment in self.node.segments}
        for claim in inventory:
            if claim.segment in claims and self._plausible(claim, self.state.segments[claim.segment]):
                claims[claim.segment][claim.offset] = claim
            else:
                self.state.counters.dropped_claims += 1
        for segment in self.node.segments:
            self._agree(segment, claims[segment.number])
            self._adopt_all(segment, claims[segment.number])
            self._rebuild(segment)

    def _plausible(self, claim: HeldCopy, segment: Segment) -> bool:
        return (
            claim.offset >= 0
            and claim.length > 0
            and claim.offset + aligned(claim.length) <= segment.capacity
            and claim.object_size > 0
            and 0 <= claim.slice_index < claim.slice_count <= self.state.config.slices_max
            and 0 < len(claim.key) <= self.state.config.key_bytes_max
            and 0 <= claim.ttl_ms <= self.state.config.ttl_ms_max
            and claim.pin in PINS
        )

    def _agree(self, segment: Segment, claims: Claims) -> None:
        """Strike out the claims the master knows of; drop copies the node no longer has."""
        for obj in list(segment.residents):
            for part in obj.slices:
                for copy in [copy for copy in part.copies if copy.segment == segment.number]:
                    claim = claims.get(copy.offset)
                    if claim is not None and (claim.write_id, claim.length) == (obj.write_id, part.length):
                        del claims[copy.offset]
                        continue
                    self.state.counters.lost_copies += 1
                    self.space.drop_copy(obj, part, copy)
            if not all(part.copies for part in obj.slices) and obj.key not in self.state.partial:
                self.state.counters.lost_objects += 1
                self.space.discard(obj)
        for write in self.state.writes.values():  # recorded here, and still being recorded by others
            for part in write.slices:
                for copy in part.copies:
                    claim = claims.get(copy.offset) if copy.segment == segment.number else None
                    if claim is not None and claim.write_id == write.write_id:
                        del claims[copy.offset]
        for entry in list(segment.quarantine.values()):
            if not entry.forgetting:
                continue
            claim = claims.get(entry.offset)
            if claim is not None and claim.write_id == entry.write_id:
                del claims[entry.offset]
                self.node.to_forget.append(entry)
            elif entry.watched:
                self.node.to_forget.append(entry)  # the node was asked, and has not said that nobody writes there
            else:
                self.space.forgotten(entry)

    def _adopt_all(self, segment: Segment, claims: Claims) -> None:
        taken = sorted(self._taken(segment))
        starts = [offset for offset, _ in taken]
        end = 0  # of the claim adopted last
        for offset, claim in sorted(claims.items()):
            after = bisect_right(starts, offset)
            stop = offset + aligned(claim.length)
            free = (
                offset >= end
                and (after == 0 or sum(taken[after - 1]) <= offset)
                and (after == len(starts) or stop <= starts[after])
            )
            if not free:
                self.state.counters.dropped_claims += 1
                self.node.strays.append((segment.number, offset, claim.write_id))  # the extent is somebody else's
                continue
            end = stop
            self._adopt(segment, claim)
        segment.residents.sort_adopted()

    def _adopt(self, segment: Segment, claim: HeldCopy) -> None:
        obj = self.state.objects.get(claim.key) or self.state.partial.get(claim.key)
        if self.away is not None and self.away.is_stale(claim):
            self._drop(segment, claim)
            return
        if obj is not None and obj.write_id < claim.write_id and self.state.partial.get(claim.key) is obj:
            self.space.discard(obj)  # of an older put, and not readable
            obj = None
        if obj is None:
            slices = [Slice(0, 0, []) for _ in range(claim.slice_count)]
            expires_at = self.state.now + claim.ttl_ms if claim.ttl_ms else 0
            obj = Object(
                claim.key, claim.write_id, claim.object_size, claim.depth, slices, self.leases_end, claim.wanted,
                expires_at, claim.pin,
            )  # fmt: skip
            obj.used = self.state.traffic.uses
            self.state.partial[claim.key] = obj
            self.state.at(self.state.now + self.state.config.partial_ms, lambda: self._give_up(obj))
        if not self._fits(obj, claim):
            self._drop(segment, claim)
            return
        part = obj.slices[claim.slice_index]
        part.length, part.checksum = claim.length, claim.checksum
        part.copies.append(Copy(segment.number, claim.offset))
        obj.lease_until = max(obj.lease_until, self.leases_end)
        segment.live_bytes += aligned(claim.length)
        segment.copies += 1
        self.space.house(obj, segment, claim.length)
        self.state.counters.adopted_copies += 1
        if obj.key in self.state.partial and all(each.copies for each in obj.slices):
            del self.state.partial[obj.key]
            self.space.show(obj)

    def _drop(self, segment: Segment, claim: HeldCopy) -> None:
        self.state.counters.dropped_claims += 1
        self.space.quarantine(
            segment, claim.offset, claim.length, claim.write_id, not_before=self.leases_end, recorded=True
        )

    def _fits(self, obj: Object, claim: HeldCopy) -> bool:
        """Whether the claim is one more copy of that very object."""
        if (obj.write_id, obj.size, len(obj.slices)) != (claim.write_id, claim.object_size, claim.slice_count):
            return False
        part = obj.slices[claim.slice_index]
        if part.copies and (part.length, part.checksum) != (claim.length, claim.checksum):
            return False
        segments = self.state.segments
        return not any(copy.segment in segments and segments[copy.segment].node is self.node for copy in part.copies)

    def _give_up(self, obj: Object) -> None:
        if self.state.partial.get(obj.key) is obj:
            self.space.discard(obj)

    def _taken(self, segment: Segment) -> list[tuple[int, int]]:
        """(offset, size) of every extent of the segment that is live, reserved or quarantined."""
        taken = [(entry.offset, aligned(entry.length)) for entry in segment.quarantine.values()]
        for obj in segment.residents:
            for part in obj.slices:
                taken += [(copy.offset, aligned(part.length)) for copy in part.copies if copy.segment == segment.number]
        for write in self.state.writes.values():
            for part in write.slices:
                taken += [(copy.offset, aligned(part.length)) for copy in part.copies if copy.segment == segment.number]
        return taken

    def _rebuild(self, segment: Segment) -> None:
        taken = self._taken(segment)
        segment.allocator = Allocator(segment.capacity, taken)
        if not segment.fenced:
            return
        segment.fenced = False
        config = self.state.config
        not_before = self.state.now + config.write_ttl_ms + config.late_write_ms
        free = segment.allocator.extents()
        segment.allocator = Allocator(segment.capacity, [*taken, *free])
        piece = aligned(config.slice_bytes)  # a writer that was stopped holds up no more than the pieces it is in
        for begin, size in free:
            for offset in range(begin, begin + size, piece):
                length = min(piece, begin + size - offset)
                self.space.quarantine(segment, offset, length, 0, not_before=not_before, recorded=False)
