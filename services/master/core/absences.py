"""Nodes that were given up and may return with what they held: which of it must not be taken back.

A removed key stays removed (invariant 2), even if a copy lay on a node that was away too long to be told. While such a
node may return, removals are remembered; if they become too many, the node must forget all it holds.
"""

from collections.abc import Iterable
from itertools import islice

from services.master.core.messages import HeldCopy

REMOVED_MAX = 1 << 16  # keys
AWAY_MAX = 4_096  # nodes; one that returns after so many others have gone is taken for a stranger


class Away:
    """One node, and what it has not confirmed forgetting, by write id."""

    __slots__ = ("incarnation", "removed", "unforgotten")

    def __init__(self, incarnation: int, removed: dict[bytes, int]) -> None:
        self.incarnation = incarnation
        self.unforgotten: set[int] = set()
        self.removed: dict[bytes, int] | None = removed  # key -> newest write id then; None: too many

    def is_stale(self, claim: HeldCopy) -> bool:
        """Whether the copy is of an object that was dropped, or may have been, while the node was away."""
        if self.removed is None or claim.write_id in self.unforgotten:
            return True
        return claim.write_id <= self.removed.get(claim.key, -1)


class Absences:
    def __init__(self) -> None:
        self._away: dict[str, Away] = {}
        self._removed: dict[bytes, int] = {}  # since the first of them went; newest last

    def begin(self, node_id: str, incarnation: int, unforgotten: Iterable[int]) -> None:
        """A node is given up. It may have been back in between without getting as far as its inventory."""
        away = self._away.get(node_id)
        if away is None or away.incarnation != incarnation:
            away = self._away[node_id] = Away(incarnation, self._removed)
        away.unforgotten.update(unforgotten)
        for oldest in list(islice(self._away, max(0, len(self._away) - AWAY_MAX))):
            del self._away[oldest]

    def of(self, node_id: str, incarnation: int) -> Away | None:
        """None if this life of the node was not away."""
        away = self._away.get(node_id)
        return away if away is not None and away.incarnation == incarnation else None

    def end(self, node_id: str) -> None:
        """What the node has is known again."""
        self._away.pop(node_id, None)
        if not self._away:
            self._removed = {}

    def note_removed(self, keys: Iterable[bytes], newest_write_id: int) -> None:
        """These keys were removed or got new bytes; what they had was of puts up to `newest_write_id`."""
        if not self._away:
            return
        for key in keys:
            self._removed[key] = max(newest_write_id, self._removed.get(key, 0))
        if len(self._removed) > REMOVED_MAX:
            self._removed = {}
            for away in self._away.values():
                away.removed = None
