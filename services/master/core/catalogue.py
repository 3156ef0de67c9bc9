"""What is found under a key: objects enter and leave here, with every copy they have.

Keeps invariants 3 (an object's bytes are counted where its copies lie) and 7 (what goes is not reused before its leases
have ended).
"""

from collections.abc import Sequence

from services.master.core.allocator import aligned
from services.master.core.cluster import Quarantined, Segment
from services.master.core.extents import Extents
from services.master.core.objects import Copy, Object, Slice
from services.master.core.runs import unlink
from services.master.core.tables import State

_NONE: Sequence[Quarantined] = ()


class Catalogue:
    def __init__(self, state: State, extents: Extents) -> None:
        self.state = state
        self.extents = extents

    def enter(self, obj: Object) -> Sequence[Quarantined]:
        """A put has ended: its extents are live, it is found and may be evicted. Returns what show() does."""
        segments, returns, pin = self.state.segments, self.state.traffic.put(obj), obj.pin
        for part in obj.slices:
            size = aligned(part.length)
            for number, _ in part.copies:
                segment = segments[number]
                segment.settle(size, pin)
                segment.residents.add(obj, returns)
        return self.show(obj)

    def add_copy(self, obj: Object, part: Slice, copy: Copy) -> None:
        """One more copy of a slice was made, in a reserved extent."""
        segment = self.state.segments[copy.segment]
        segment.settle(aligned(part.length), obj.pin)
        part.copies.append(copy)
        self.house(obj, segment)

    def house(self, obj: Object, segment: Segment) -> None:
        """One more copy of an object lies on the segment, and is worth there what it is worth elsewhere."""
        segments = self.state.segments
        holders = [segments[copy.segment] for part in obj.slices for copy in part.copies if copy.segment in segments]
        if holders == [segment]:  # its only copy, as with nearly all that are adopted
            segment.residents.add(obj, 0)
        elif obj not in segment.residents:
            segment.residents.add(obj, max(holder.residents.returns(obj) or 0 for holder in holders))

    def show(self, obj: Object) -> Sequence[Quarantined]:
        """From now on the object is found, in place of an older put's, whose extents are returned."""
        state, key = self.state, obj.key
        older, entries = state.objects.get(key), _NONE
        if older is not None:
            assert older.write_id < obj.write_id
            entries = self.discard(older)
        for part in obj.slices:
            assert part.copies
        state.objects[key] = obj
        state.names.add(key)
        state.object_bytes += obj.size
        if obj.expires_at:
            state.expiring[obj.expires_at, obj.write_id] = obj
        return entries

    def discard(self, obj: Object) -> list[Quarantined]:
        """Drop an object and all its copies. Its space returns once leases have ended and nodes have forgotten it."""
        state = self.state
        if state.objects.get(obj.key) is obj:
            del state.objects[obj.key]
            unlink(obj)
            state.names.remove(obj.key)
            state.object_bytes -= obj.size
            state.missing.pop(obj, None)
            if obj.expires_at:
                del state.expiring[obj.expires_at, obj.write_id]
        elif state.partial.get(obj.write_id) is obj:
            del state.partial[obj.write_id]
        entries = []
        for part in obj.slices:
            for copy in list(part.copies):
                entry = self.drop_copy(obj, part, copy)
                if entry is not None:
                    entries.append(entry)
        return entries

    def drop_copy(self, obj: Object, part: Slice, copy: Copy) -> Quarantined | None:
        """Take one copy from an object; the caller deals with objects that lost their last."""
        part.copies.remove(copy)
        segment = self.state.segments.get(copy.segment)
        if segment is None:
            return None
        segment.unsettle(aligned(part.length), obj.pin)
        if not any(other.segment == copy.segment for each in obj.slices for other in each.copies):
            segment.residents.discard(obj)
        not_before = max(obj.lease_until, self.state.read_until.get(copy, 0))
        return self.extents.release(copy, part.length, obj.write_id, not_before=not_before, recorded=True)
