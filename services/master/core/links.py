"""Ways from node to node: a pair between which a copy failed rests, longer each time.

That ends with a copy that succeeds, a new life of either node, or a long time; not because both answer the master,
which says nothing about a firewall between them. A rested pair gets one copy to try, however many wait (invariant 12);
other pairs go on meanwhile.
"""

from collections import OrderedDict
from collections.abc import Iterable

from services.master.core.cluster import Node
from services.master.core.tables import State

FIRST_MS = 500  # of rest after the first failure: doubled with each
LONGEST_MS = 60_000
FORGOTTEN_MS = 600_000  # a pair not tried for so long is as good as new
GIVEN_UP = 3  # failures in a row after which nobody waits for the pair any more
PAIRS_MAX = 16_384

Pair = tuple[str, int, str, int]


class _Rest:
    __slots__ = ("failed_at", "failures", "trying", "until")

    def __init__(self) -> None:
        self.failures = 0
        self.failed_at = 0
        self.until = 0
        self.trying = False


class Links:
    def __init__(self, state: State) -> None:
        self.state = state
        self._rests: OrderedDict[Pair, _Rest] = OrderedDict()  # the last that failed last

    def is_open(self, source: Node, target: Node) -> bool:
        """Whether a copy may be tried now."""
        rest = self._rest(source, target)
        return rest is None or (not rest.trying and self.state.now >= rest.until)

    def leads_to(self, sources: Iterable[Node], target: Node) -> bool:
        return any(self.is_open(source, target) for source in sources)

    def is_given_up(self, sources: Iterable[Node], target: Node) -> bool:
        """Whether copies from all of them failed so often that another target is better than waiting."""
        rests = [self._rest(source, target) for source in sources]
        return all(rest is not None and rest.failures >= GIVEN_UP for rest in rests)

    def begin(self, source: Node, target: Node) -> bool:
        """A copy is on its way. Returns whether it is the one try of a pair that has failed."""
        assert self.is_open(source, target)
        rest = self._rest(source, target)
        if rest is not None:
            rest.trying = True
        return rest is not None

    def end_trial(self, source: Node, target: Node) -> None:
        """However it ended."""
        rest = self._rests.get(_pair(source, target))
        if rest is not None:
            rest.trying = False

    def worked(self, source: Node, target: Node) -> bool:
        """A copy arrived. Returns whether the pair had failed before."""
        return self._rests.pop(_pair(source, target), None) is not None

    def failed(self, source: Node, target: Node, begun_at: int) -> tuple[int, int] | None:
        """A copy begun at `begun_at` failed: (failures in a row, ms of rest); None if that is no news."""
        now, rest = self.state.now, self._rest(source, target)
        if rest is not None and begun_at <= rest.failed_at:
            return None  # it was on its way when another failed
        if rest is None:
            rest = self._rests[_pair(source, target)] = _Rest()
        self._rests.move_to_end(_pair(source, target))
        rest.failures += 1
        rest_ms = min(FIRST_MS << min(rest.failures - 1, 16), LONGEST_MS)
        rest.failed_at, rest.until = now, now + rest_ms
        while len(self._rests) > PAIRS_MAX:
            self._rests.popitem(last=False)
        return rest.failures, rest_ms

    def _rest(self, source: Node, target: Node) -> _Rest | None:
        rest = self._rests.get(_pair(source, target))
        if rest is not None and not rest.trying and self.state.now - rest.failed_at >= FORGOTTEN_MS:
            del self._rests[_pair(source, target)]
            return None
        return rest


def _pair(source: Node, target: Node) -> Pair:
    return source.node_id, source.incarnation, target.node_id, target.incarnation
