"""Nodes that were given up and may return with what they held: which of it must not be taken back.

A removed key stays removed (invariant 2), even if a copy lay on a node that was away too long to be told, or that has
not attached since the master began. While such a node may come, removals are remembered; if they become too many, the
node must forget all it holds.
"""

from collections.abc import Collection, Iterable
from itertools import islice

from services.master.core.messages import HeldCopy

REMOVED_MAX = 1 << 16  # keys
AWAY_MAX = 4_096  # nodes; one that returns after so many others have gone is taken for a stranger


class Away:
    """One node, and what it has not confirmed forgetting, by write id."""

    __slots__ = ("incarnation", "removed", "unforgotten")

    def __init__(self, incarnation: int, removed: dict[bytes, int] | None) -> None:
        self.incarnation = incarnation
        self.unforgotten: set[int] = set()
        self.removed = removed  # key -> newest write id then; None: too many

    def is_stale(self, claim: HeldCopy) -> bool:
        """Whether the copy is of an object that was dropped, or may have been, while the node was away."""
        if self.removed is None or claim.write_id in self.unforgotten:
            return True
        return claim.write_id <= self.removed.get(claim.key, -1)


class Absences:
    def __init__(self) -> None:
        self._away: dict[str, Away] = {}
        self._removed: dict[bytes, int] = {}  # since the first of them went
        self._ever_removed: dict[bytes, int] | None = {}  # by this master; None: too many

    def begin(self, node_id: str, incarnation: int, unforgotten: Iterable[int], *, is_new: bool = False) -> None:
        """A node is given up, or dials: it may go again without getting as far as its inventory.

        `is_new`: this master does not know it, an earlier one may have.
        """
        away = self._away.get(node_id)
        if away is None or away.incarnation != incarnation:
            removed = self._ever_removed if is_new else self._removed
            away = self._away[node_id] = Away(incarnation, removed)
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

    def note_removed(self, keys: Collection[bytes], newest_write_id: int) -> None:
        """These keys were removed or got new bytes; what they had was of puts up to `newest_write_id`."""
        if self._ever_removed is not None:
            _note(self._ever_removed, keys, newest_write_id)
            if len(self._ever_removed) > REMOVED_MAX:
                self._forget_all(self._ever_removed)
                self._ever_removed = None
        if self._away:
            _note(self._removed, keys, newest_write_id)
            if len(self._removed) > REMOVED_MAX:
                self._forget_all(self._removed)
                self._removed = {}

    def _forget_all(self, removed: dict[bytes, int]) -> None:
        for away in self._away.values():
            if away.removed is removed:
                away.removed = None


def _note(removed: dict[bytes, int], keys: Iterable[bytes], newest_write_id: int) -> None:
    for key in keys:
        removed[key] = max(newest_write_id, removed.get(key, 0))
