"""What repair owes: the wanted copies of every object, as far as there is room or something worth less to evict.

Worked out anew from the tables: what would fit if all that is worth less than an object were gone.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from services.master.core.allocator import Allocator, aligned
from services.master.core.cluster import Segment
from services.master.core.master import Master
from services.master.core.messages import Pin
from services.master.core.objects import Object, Slice
from tests.sim.loop import Violation


def unrepaired(core: Master) -> str | None:
    """What needlessly lacks copies or has too many, once all leases have ended and nothing is in quarantine."""
    state = core.state
    for obj in state.objects.values():
        for part in obj.slices:
            if len(part.copies) > obj.wanted:
                return f"{obj.key!r} keeps surplus copies"
            holders = [state.segments[copy.segment].node for copy in part.copies]
            others = [segment for segment in state.segments.values() if segment.node not in holders]
            if len(part.copies) >= obj.wanted:
                continue
            copy = core.placing.place_copy(part, lambda _: True)
            if copy is not None:
                core.placing.unreserve([copy], part.length)
                return f"{obj.key!r} has {len(part.copies)} copies of {obj.wanted}, and there is room"
            if any(_could_take(core, segment, obj, part) for segment in others):
                return f"{obj.key!r} has {len(part.copies)} copies of {obj.wanted}, and others are worth less"
    return None


def _could_take(core: Master, segment: Segment, obj: Object, part: Slice) -> bool:
    goes = _would_go(core, segment, _worth(core, obj))
    stays = [
        (copy.offset, other.length)
        for resident in segment.residents
        if resident is obj or resident not in goes
        for other in resident.slices
        for copy in other.copies
        if copy.segment == segment.number
    ]
    used = sum(aligned(length) for _, length in stays) + segment.reserved_bytes
    limit = int(core.state.config.high_watermark * segment.capacity)
    if segment.reserved_bytes or used + aligned(part.length) > limit:
        return False
    return Allocator(segment.capacity, stays).largest_free_bytes >= aligned(part.length)


def _would_go(core: Master, segment: Segment, below: tuple[int, float]) -> set[Object]:
    """What eviction would take before it met something worth that much."""
    bonus, goes = core.state.traffic.bonus, set()
    rows = [deque(row.items()) for row in segment.residents._rows]
    while any(rows):
        heads = [(Pin.NONE, row[0][1] + bonus * i, row) for i, row in enumerate(rows[:-1]) if row]
        pin, worth, row = min(
            heads, default=(Pin.SOFT, rows[-1][0][1] if rows[-1] else 0, rows[-1]), key=lambda h: h[1]
        )
        if (pin, worth) >= below:
            break
        goes.add(row.popleft()[0])
    return goes


def watch_displacing(core: Master) -> None:
    """Check that nothing goes for a copy of what is worth no more."""
    displace, evict = core.room.displace, core.room.evict
    spared: list[tuple[float, dict[Object, tuple[int, float]]]] = []

    def watched_displace(obj: Object, part: Slice, prospects: Any, can_take: Any) -> bool:
        least = _worth(core, obj)
        worth_more = {other: worth for other, worth in _worths(core).items() if worth >= least}
        spared.append((core.state.traffic.bonus, {**worth_more, obj: least}))
        went = displace(obj, part, prospects, can_take)
        spared.pop()
        return went

    def watched_evict(obj: Object) -> None:
        # With another bonus all are worth something else.
        if spared and obj in spared[-1][1] and spared[-1][0] == core.state.traffic.bonus:
            raise Violation(f"{obj.key!r} goes for a copy of what is worth no more")
        evict(obj)

    replace: Callable[[str, Any], None] = core.room.__setattr__
    replace("displace", watched_displace)
    replace("evict", watched_evict)


def _worth(core: Master, obj: Object) -> tuple[int, float]:
    return max(core.state.segments[copy.segment].residents.worth(obj) for copy in obj.slices[0].copies)


def _worths(core: Master) -> dict[Object, tuple[int, float]]:
    """What each object is worth in the segment where it is worth least, by its place in the rows."""
    worths: dict[Object, tuple[int, float]] = {}
    for segment in core.state.segments.values():
        for returns, row in enumerate(segment.residents._rows):
            for obj, queued in row.items():
                worth = obj.pin, queued + (0.0 if obj.pin else core.state.traffic.bonus * returns)
                worths[obj] = min(worth, worths.get(obj, worth))
        worths.update({obj: (Pin.HARD, 0.0) for obj in segment.residents if obj.pin == Pin.HARD})
    return worths
