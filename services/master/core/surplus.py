"""Copies that are given back: more than are wanted, and those on draining nodes if others are enough (invariant 2)."""

from services.master.core.allocator import aligned
from services.master.core.catalogue import Catalogue
from services.master.core.objects import Copy, Object, Slice
from services.master.core.tables import State
from services.master.core.transfers import Transfers


class Surplus:
    def __init__(self, state: State, catalogue: Catalogue, transfers: Transfers) -> None:
        self.state = state
        self.catalogue = catalogue
        self.transfers = transfers

    def trim(self, obj: Object) -> None:
        """Drop live copies beyond what is wanted, first those that share a zone or a host, in the fullest segments."""
        if not self.state.is_there(obj):
            return
        for number, part in enumerate(obj.slices):
            live = self.state.live_copies(part)
            if self.state.draining and not self.transfers.has(obj, number):
                live = self._drain(obj, part, live)
            while len(live) > obj.wanted:
                surplus = max(live, key=lambda copy: self._dispensable(copy, live))
                live.remove(surplus)
                self.catalogue.drop_copy(obj, part, surplus)
                self.state.counters.trimmed_copies += 1

    def _drain(self, obj: Object, part: Slice, live: list[Copy]) -> list[Copy]:
        """Drop the copies on draining nodes if the others have as many as they can. The live ones that are left."""
        staying = self.state.staying_copies(part)
        could_be = min(obj.wanted, len(self.state.nodes) - self.state.draining)
        if len(staying) < max(1, could_be):
            return live
        self.drop_draining(obj, part)
        return staying

    def drop_draining(self, obj: Object, part: Slice) -> None:
        """Drop the live copies on draining nodes."""
        for copy in self.state.live_copies(part):
            if self.state.segments[copy.segment].node.draining:
                self.catalogue.drop_copy(obj, part, copy)
                self.state.counters.drained_copies += 1
        self.state.count_copies(obj)

    def _dispensable(self, copy: Copy, among: list[Copy]) -> tuple[int, int, float, int]:
        segment = self.state.segments[copy.segment]
        nodes = [self.state.segments[other.segment].node for other in among]
        return (
            sum(node.zone == segment.node.zone for node in nodes),
            sum(node.host_id == segment.node.host_id for node in nodes),
            (segment.live_bytes + segment.reserved_bytes) / aligned(segment.capacity),
            -copy.segment,
        )
