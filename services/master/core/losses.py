"""What is lost with a node that is given up: its copies leave their objects, a few in each step (invariant 12)."""

from collections import deque

from services.master.core.catalogue import Catalogue
from services.master.core.cluster import Node, Segment
from services.master.core.objects import Object
from services.master.core.repair import Repair
from services.master.core.tables import State

SWEEP_PER_STEP = 1_024  # objects of a lost segment that one step sees to: a step must stay short


class Losses:
    def __init__(self, state: State, catalogue: Catalogue, repair: Repair) -> None:
        self.state = state
        self.catalogue = catalogue
        self.repair = repair
        self.sweeping: deque[Segment] = deque()

    def begin(self, node: Node) -> None:
        for segment in node.segments:
            segment.gone = True
            self.sweeping.append(segment)
        self._sweep()

    def _sweep(self) -> None:
        """Do some of the work; the rest follows in the next steps."""
        budget = SWEEP_PER_STEP
        while self.sweeping and budget:
            segment = self.sweeping[0]
            while segment.residents and budget:
                budget -= 1
                self._lose(next(iter(segment.residents)), segment)
            if not segment.residents:
                self.sweeping.popleft()
                del self.state.segments[segment.number]
        if self.sweeping:
            self.state.at(self.state.now, self._sweep)

    def _lose(self, obj: Object, segment: Segment) -> None:
        for part in obj.slices:
            for copy in [copy for copy in part.copies if copy.segment == segment.number]:
                self.state.counters.lost_copies += 1
                self.catalogue.drop_copy(obj, part, copy)
        if all(part.copies for part in obj.slices):
            self.repair.want(obj)
        else:
            self.state.counters.lost_objects += 1
            self.catalogue.discard(obj)
