"""Which objects leave a segment first. Plain recency takes what was used longest ago; here an object that was used
again after a while stays longer, for each such return by the distance, in uses, after which objects return.

What is learned from the traffic is shared by all segments (`Traffic`); each segment keeps its own order (`Residents`).
A lookup only stamps the object (`used`): its place is corrected when it is first in line, so that a hit costs next to
nothing and each look is paid for by a use. No clock: time is counted in uses. Keeps invariants 12 and 13.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import chain
from zlib import crc32

from services.master.core.answers import Pin
from services.master.core.objects import Object

Worth = tuple[int, float]
"""For comparing: how firmly an object is pinned, then its last use, moved later for each return."""

_HARD = Pin.HARD  # members of an enum are slow to look up
SOFT_ROW = 8  # the row after the last
RETURNS_MAX = 7  # more make no difference: what was wanted most must go, too, once it is not wanted any more
BURST_SHARE = 8  # used only within the first 1/8 of its stay (put, then handed over): one use, not a return
HELD_SKIPPED_MAX = 64  # looks in vain before a segment is left alone for this step
LOOKS_MAX = 4_096  # in one step, at most
GENERATIONS = 4  # of evicted objects remembered, each half as many as there are objects
SAMPLE_MIN = 64  # averages reach over as many objects as there are, and at least over so many


class Residents:
    """The objects with a copy on one segment: a row for each number of returns, the oldest first.

    Softly pinned ones have a row of their own, by plain recency, whose turn comes when all others are empty. Those
    pinned hard are in none.
    """

    __slots__ = ("_pinned", "_rows", "_traffic")

    def __init__(self, traffic: "Traffic") -> None:
        self._traffic = traffic
        # Object -> its last use when it was put into the row: a later use shows by comparing.
        self._rows: list[OrderedDict[Object, int]] = [OrderedDict() for _ in range(SOFT_ROW + 1)]
        self._pinned: dict[Object, None] = {}

    def victims(
        self,
        wanted_bytes: int,
        *,
        count_max: int,
        size_of: Callable[[Object], int],
        held: Callable[[Object], bool],
        below: Worth | None = None,
    ) -> tuple[list[Object], bool]:
        """Objects of about `wanted_bytes` to evict, in order, and whether another call may find more.

        They are no longer residents: the caller discards them. Those `held` back keep their place, unless there are so
        many that nothing else is found. `below`: only what is worth less.
        """
        traffic, looks = self._traffic, 0
        victims: list[Object] = []
        skipped: list[tuple[int, Object, int]] = []
        while wanted_bytes > 0 and len(victims) < count_max and len(skipped) < HELD_SKIPPED_MAX and looks < LOOKS_MAX:
            returns = self._next_row()
            if returns is None or (below is not None and self._first_worth(returns) >= below):
                break
            looks += 1
            obj, queued = self._rows[returns].popitem(last=False)
            stay, distance = traffic.uses - queued, obj.used - queued
            if returns == SOFT_ROW:
                if distance:
                    self.add(obj, 0)
                elif held(obj):
                    skipped.append((returns, obj, queued))
                else:
                    victims.append(obj)
                    wanted_bytes -= size_of(obj)
            elif distance and distance * BURST_SHARE >= stay:
                traffic.stayed(returns, stay)
                traffic.came_back(returns, distance)
                self.add(obj, returns + 1)
            elif held(obj):
                skipped.append((returns, obj, queued))
            else:
                traffic.stayed(returns, stay)
                traffic.evicted(obj, returns)
                victims.append(obj)
                wanted_bytes -= size_of(obj)
        if len(skipped) == HELD_SKIPPED_MAX:  # they are in the way of others, and were used lately
            for returns, obj, _ in skipped:
                self._rows[returns][obj] = obj.used
        else:
            for returns, obj, queued in reversed(skipped):
                self._rows[returns][obj] = queued
                self._rows[returns].move_to_end(obj, last=False)
        return victims, looks == LOOKS_MAX

    def _next_row(self) -> int | None:
        """The row whose first object is worth least."""
        bonus, least, lowest = self._traffic.bonus, None, 0.0
        for returns, row in enumerate(self._rows[:SOFT_ROW]):
            if row:
                worth = row[next(iter(row))] + bonus * returns
                if least is None or worth < lowest:
                    least, lowest = returns, worth
        return SOFT_ROW if least is None and self._rows[SOFT_ROW] else least

    def _first_worth(self, returns: int) -> Worth:
        row = self._rows[returns]
        queued = row[next(iter(row))]
        return (Pin.SOFT, queued) if returns == SOFT_ROW else (Pin.NONE, queued + self._traffic.bonus * returns)

    def least(self) -> Worth | None:
        """What the first to be evicted is worth, at least: it may have been used since. None if there is none."""
        returns = self._next_row()
        return None if returns is None else self._first_worth(returns)

    def is_first(self, obj: Object) -> bool:
        """Whether the object would be the first to be evicted."""
        returns = self._next_row()
        return returns is not None and next(iter(self._rows[returns])) is obj

    def worth(self, obj: Object) -> Worth:
        """Of a resident."""
        bonus = 0.0 if obj.pin else self._traffic.bonus * (self.returns(obj) or 0)
        return obj.pin, obj.used + bonus

    def add(self, obj: Object, returns: int) -> None:
        """Add an object that returned `returns` times so far."""
        if obj.pin == _HARD:
            self._pinned[obj] = None
        else:
            self._rows[SOFT_ROW if obj.pin else min(returns, RETURNS_MAX)][obj] = obj.used

    def discard(self, obj: Object) -> None:
        if obj.pin == Pin.HARD:
            self._pinned.pop(obj, None)
        for row in self._rows:
            if row.pop(obj, None) is not None:
                return

    def returns(self, obj: Object) -> int | None:
        """How often a resident was seen to return; None if it is none."""
        return next((returns for returns, row in enumerate(self._rows) if obj in row), None)

    def put_last(self, obj: Object) -> None:
        """Among those that never returned; nothing happens if it is not one of them."""
        if obj in self._rows[0]:
            self._rows[0].move_to_end(obj)

    def __contains__(self, obj: Object) -> bool:
        return obj in self._pinned or self.returns(obj) is not None

    def __iter__(self) -> Iterator[Object]:
        return chain(*self._rows, self._pinned)

    def __len__(self) -> int:
        return sum(map(len, self._rows)) + len(self._pinned)


class Traffic:
    """How objects return, and whether it pays to keep those longer that did.

    Sampled when objects are looked at for eviction and when evicted ones are put again; means of the recent past.
    """

    def __init__(self, objects: dict[bytes, Object]) -> None:
        self.uses = 0  # so far: objects found by lookups, put, or offered again
        self._objects = objects
        self._distance = 0.0  # uses between two uses of an object that returned: the median
        self._stay = 0.0  # uses from one look at an object to the next: its stay by plain recency
        self._returns = 0.0  # of the objects looked at
        self._looks = 0
        self._lead = 0  # objects that the bonus kept until they returned, less those it made go too soon
        self._ghosts: deque[_Generation] = deque(maxlen=GENERATIONS)

    @property
    def bonus(self) -> float:
        """Uses by which an object may stay longer for each return."""
        return self._distance if self._lead >= 0 else 0.0

    def use(self, count: int = 1) -> int:
        """Count uses; what to stamp the objects with."""
        self.uses += count
        return self.uses

    def put(self, obj: Object) -> int:
        """Stamp a new object. Returns how often it returned, if it was here not long ago."""
        self.uses += 1
        obj.used = self.uses
        for ghosts in self._ghosts:
            returns = ghosts.returns.pop(crc32(obj.key), None)
            if returns is not None:
                self._judge(returns, self.uses - ghosts.used[returns])
                return returns + 1
        return 0

    def came_back(self, returns: int, distance: int) -> None:
        """A resident was used again, `distance` uses after it had been put into its row."""
        self._judge(returns, distance)
        pace = 1 / self._sample
        self._distance *= 1 + pace if distance > self._distance else 1 - pace
        self._distance = self._distance or float(distance)

    def stayed(self, returns: int, stay: int) -> None:
        """A resident was looked at, `stay` uses after it had been put into its row."""
        self._looks += 1
        weight = 1 / min(self._looks, self._sample)
        self._stay += weight * (stay - self._stay)
        self._returns += weight * (returns - self._returns)

    def evicted(self, obj: Object, returns: int) -> None:
        if not self._ghosts or len(self._ghosts[0].returns) >= self._sample // 2:
            self._ghosts.appendleft(_Generation())
        self._ghosts[0].remember(obj, returns)

    def _judge(self, returns: int, distance: int) -> None:
        """Would it have been there, by plain recency and with the bonus? What some gain by it others lose."""
        recency = distance < self._stay
        favoured = distance < self._stay + self._distance * (returns - self._returns)
        bound = SAMPLE_MIN + self._sample // 32
        self._lead = max(-bound, min(bound, self._lead + favoured - recency))

    @property
    def _sample(self) -> int:
        return max(SAMPLE_MIN, len(self._objects))


class _Generation:
    """Objects evicted in a row. Forgotten as a whole: a chain is of use only as a whole."""

    __slots__ = ("returns", "used")

    def __init__(self) -> None:
        self.returns: dict[int, int] = {}  # by the key's hash: small, and it does no harm if two share it
        self.used = [0] * (RETURNS_MAX + 1)  # by returns: last use of the first one evicted

    def remember(self, obj: Object, returns: int) -> None:
        self.used[returns] = self.used[returns] or obj.used
        self.returns[crc32(obj.key)] = returns
