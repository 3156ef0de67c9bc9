"""Where slices are placed: on which nodes and in which extents, the nearest and emptiest first.

Keeps invariants 3 (extents disjoint) and 4 (copies on distinct nodes; in distinct zones and on distinct hosts where
there are any). Whether to wait or to evict if there is no room is decided elsewhere.
"""

from collections.abc import Callable, Iterable, Sequence

from services.master.core.allocator import aligned
from services.master.core.cluster import Node, Segment
from services.master.core.objects import Copy, Near, Slice
from services.master.core.tables import State

PinRoom = dict[int, int]  # by segment: bytes that may still be pinned hard there


class Placing:
    def __init__(self, state: State) -> None:
        self.state = state

    def slice_lengths(self, size: int) -> list[int]:
        limit = self.state.config.slice_bytes
        full, rest = divmod(size, limit)
        return [limit] * full + ([rest] if rest else [])

    def could_ever_fit(self, size: int) -> bool:
        """Whether one copy of an object of `size` bytes would fit into the open segments, were they empty."""
        segments = self.state.open_segments()
        if not segments:
            return True  # nobody knows yet
        full, rest = divmod(size, self.state.config.slice_bytes)
        slice_size = aligned(self.state.config.slice_bytes)
        room = sum(segment.capacity // slice_size for segment in segments)
        if not rest or room > full:
            return room >= full
        return room == full and any(segment.capacity % slice_size >= aligned(rest) for segment in segments)

    def pin_room(self) -> PinRoom:
        """How much more may be pinned hard."""
        share = self.state.config.pin_share
        open_segments = self.state.open_segments()
        room = {segment.number: int(share * segment.capacity) - segment.pinned_bytes for segment in open_segments}
        for write in self.state.pinned_writes.values():
            for part in write.slices:
                for number, _ in part.copies:
                    if number in room:
                        room[number] -= aligned(part.length)
        return room

    def could_pin(self, size: int, copies: int, room: PinRoom) -> bool:
        """Whether an object of `size` bytes may be pinned hard on as many nodes as it wants copies."""
        largest = aligned(min(size, self.state.config.slice_bytes))
        segments = self.state.open_segments()
        pinnable = [segment for segment in segments if room[segment.number] >= largest]
        wanted = min(copies, _count_nodes(segments))
        spread = _count_nodes(pinnable) >= wanted
        return spread and sum(room[segment.number] for segment in pinnable) >= size * wanted

    def place(
        self, size: int, copies: int, near: Near, *, degraded: bool, room: PinRoom | None = None
    ) -> list[Slice] | None:
        """Reserve extents for every slice, `copies` on distinct nodes (as many as there are nodes).

        With `degraded` fewer copies are better than none. None, with nothing reserved, if there is no room now.
        """
        lengths = self.slice_lengths(size)
        # An object of many slices is spread over the nodes, so that reading it uses all their bandwidth.
        near = near if len(lengths) == 1 else Near(zone=near.zone)
        slices: list[Slice] = []
        for length in lengths:
            placed = self._place_slice(length, copies, near, degraded=degraded, room=room)
            if not placed:
                for done in slices:
                    self.unreserve(done.copies, done.length, room)
                return None
            slices.append(Slice(length, 0, placed))
        return slices

    def place_run(
        self, size: int, count: int, copies: int, near: Near, *, degraded: bool, room: PinRoom | None = None
    ) -> list[list[Slice]]:
        """`place` for 1 to `count` objects of `size` bytes; none if there is no room for the first now.

        Where several fit into one slice they are placed as one: side by side, on the same nodes.
        """
        each = aligned(size)
        if count > 1:
            whole = self._place_slice(count * each, copies, near, degraded=False, room=room)
            if whole and len(whole) == min(copies, _count_nodes(self.state.open_segments())):
                columns = [[Copy(number, start) for start in range(o, o + count * each, each)] for number, o in whole]
                return [[Slice(size, 0, list(copies))] for copies in zip(*columns, strict=True)]
            self.unreserve(whole, count * each, room)
        slices = self.place(size, copies, near, degraded=degraded, room=room)
        return [slices] if slices else []

    def _place_slice(
        self,
        length: int,
        copies: int,
        near: Near,
        *,
        degraded: bool,
        holders: Sequence[Node] = (),
        among: Sequence[Segment] | None = None,
        room: PinRoom | None = None,
    ) -> list[Copy]:
        """Reserve extents on `copies` nodes that are not holders, in distinct zones, then on distinct hosts if it can.

        `among`: only these segments. `room` is what may be taken of each segment, and is reduced by what is.
        """
        size = aligned(length)
        nodes = list(holders)  # with a copy
        segments = [s for s in (self.state.open_segments() if among is None else among) if s.could_hold(size)]
        if room is not None:
            segments = [segment for segment in segments if room[segment.number] >= size]
        wanted = min(copies, _count_nodes(segments))
        placed: list[Copy] = []

        def rank(segment: Segment) -> tuple[bool, bool, bool, bool, bool, bool, float, int]:
            node, used = segment.node, segment.live_bytes + segment.reserved_bytes + size
            return (
                node.probed_at is not None,  # a client could not reach it
                used > segment.limit_bytes,  # elsewhere rather than by eviction
                any(other.zone == node.zone for other in nodes),
                any(other.host_id == node.host_id for other in nodes),
                bool(near.host_id) and not nodes and node.host_id != near.host_id,
                bool(near.zone) and not nodes and node.zone != near.zone,
                used / segment.capacity,
                segment.number,
            )

        while len(placed) < wanted:
            for segment in sorted((s for s in segments if s.node not in nodes), key=rank):
                offset = segment.reserve(length)
                if offset is not None:
                    break
            else:
                if degraded:
                    break
                self.unreserve(placed, length, room)
                return []
            if room is not None:
                room[segment.number] -= size
            self.state.pressed[segment.number] = segment
            nodes.append(segment.node)
            placed.append(Copy(segment.number, offset))
        assert len({self.state.segments[copy.segment].node.node_id for copy in placed}) == len(placed)
        return placed

    def place_copy(self, part: Slice, can_take: Callable[[Node], bool]) -> Copy | None:
        """Reserve an extent for one more copy of a slice, on a node without one; None if there is no room now.

        No segment gets above the watermark by it: what goes for such a copy is decided in `Room.displace`.
        """
        among = [segment for segment in self.roomy(part) if can_take(segment.node)]
        holders = self.state.holders(part)
        placed = self._place_slice(part.length, 1, Near(), degraded=False, holders=holders, among=among)
        return placed[0] if placed else None

    def roomy(self, part: Slice) -> list[Segment]:
        """Segments with bytes enough for one more copy of a slice as things are."""
        size, holders = aligned(part.length), self.state.holders(part)
        return [
            segment
            for segment in self.state.open_segments()
            if segment.excess(size) <= 0 and segment.node not in holders and segment.node.probed_at is None
        ]

    def unreserve(self, copies: Sequence[Copy], length: int, room: PinRoom | None = None) -> None:
        """Take back what nobody was told of yet."""
        for number, offset in copies:
            self.state.segments[number].unreserve(offset, length)
            if room is not None:
                room[number] += aligned(length)


def _count_nodes(segments: Iterable[Segment]) -> int:
    return len({segment.node.node_id for segment in segments})
