"""Draining nodes: nothing new is placed there, repair makes their copies elsewhere, then they may leave.

Keeps invariants 2 (a copy goes only if there are enough others) and 7 (a node stays until every lease on what it held
has ended). The node itself remembers that it drains, so that a new master learns of it.
"""

from services.master.core import messages as m
from services.master.core.arguments import Invalid
from services.master.core.calls import Calls
from services.master.core.cluster import Node
from services.master.core.phases import Phase
from services.master.core.quarantine import OF_COPIES
from services.master.core.repair import Repair
from services.master.core.tables import State


class Drains:
    def __init__(self, state: State, calls: Calls, repair: Repair) -> None:
        self.state = state
        self.calls = calls
        self.repair = repair

    def drain(self, command: m.Drain) -> None:
        """Begin, or with `cancel` call it off. Asking twice is asking once."""
        node = self.state.nodes.get(command.node_id)
        if node is None:
            known = ", ".join(self.state.nodes) or "none"
            raise Invalid(f"there is no storage node {command.node_id!r}: known are {known[:1000]}")
        if node.draining is command.cancel:
            self.set(node, not command.cancel)
            objects = sum(len(segment.residents) for segment in node.segments)
            done = "is called off" if command.cancel else "begins"
            self.state.note(f"the drain of node {node.node_id} {done}: {objects} objects lie there")
            self.tell(node)
            self.repair.review(node)
        self.calls.reply(command.call, m.DrainSet())

    def set(self, node: Node, draining: bool) -> None:
        self.state.draining += draining - node.draining
        node.draining = draining

    def tell(self, node: Node) -> None:
        if node.stream is not None:
            self.state.effects.append(m.Draining(node.stream, self.state.epoch, node.draining))

    def is_empty(self, node: Node) -> bool:
        """Whether it holds nothing, nothing is on its way there, and nobody may be reading what it held."""
        return node.phase is Phase.LIVE and not any(
            segment.residents
            or segment.reserved_bytes
            or any(entry.hold in OF_COPIES for entry in segment.quarantine.values())
            for segment in node.segments
        )

    def report(self, node: Node) -> m.DrainReport | None:
        if not node.draining:
            return None
        objects = sum(len(segment.residents) for segment in node.segments)
        is_resting = self.state.rest.left_ms(self.state.now) > 0  # the room is there, and will be free
        return m.DrainReport(objects, 0 if is_resting else self.repair.without_room(node))
