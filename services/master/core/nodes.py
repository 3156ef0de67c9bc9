"""What storage nodes say: hello, inventory, heartbeats, acknowledgements, leave.

Keeps invariants 6 (old epochs and incarnations change nothing) and 8 (inventories are adopted before anything new is
placed; conflicting claims are dropped, never served). What follows if they say nothing is in `silence`.
"""

from itertools import zip_longest

from services.master.core import messages as m
from services.master.core.adoption import Adoption
from services.master.core.allocator import ALIGN_BYTES
from services.master.core.catalogue import Catalogue
from services.master.core.claims import Claims
from services.master.core.cluster import Node, Segment
from services.master.core.drain import Drains
from services.master.core.ends import Ends
from services.master.core.extents import Extents
from services.master.core.losses import Losses
from services.master.core.phases import Event, Phase
from services.master.core.repair import Repair
from services.master.core.silence import Silence
from services.master.core.tables import State


class Nodes:
    def __init__(
        self, state: State, extents: Extents, catalogue: Catalogue, repair: Repair, ends: Ends, drains: Drains
    ) -> None:
        self.state = state
        self.extents = extents
        self.catalogue = catalogue
        self.repair = repair
        self.drains = drains
        self.adoptions: dict[Node, Adoption] = {}  # under way: the node's inventory is complete
        self.losses = Losses(state, catalogue, repair)
        self.silence = Silence(
            state, extents, repair, ends, drains, self.losses, suspected=self._suspected, let_go=self._let_go
        )
        self.claims = Claims(state, self.silence, self.hello)

    # ---- attachment ------------------------------------------------------------------------------

    def hello(self, command: m.Hello) -> None:
        """A node dials: known (its stream broke, or it opens another), new, or another life of a known one."""
        state = self.state
        if not command.node_id or not command.segments or any(s.capacity_bytes <= 0 for s in command.segments):
            state.close(command.stream, "hello needs a node id and segments with capacity")
            return
        node = state.nodes.get(command.node_id)
        if command.epoch > state.epoch or (command.epoch == state.epoch and node is None):
            state.begin_epoch(command.epoch + 1)  # it obeyed a master whose epoch this one's clock does not exceed
        if node is not None and command.incarnation < node.incarnation:
            state.counters.stale_messages += 1
            self.claims.refuse(node, command.stream)
            return
        if node is not None and not node.is_life_of(command):
            if not self.claims.is_over(node):
                self.claims.claim(node, command)
                return
            state.note(f"node {node.node_id} begins a new life, and empty: what it held is lost", grave=True)
            self.silence.give_up(node)
            node = None
        if node is not None and node.stream is not None:
            state.close(node.stream, "the node attached again")
            self.silence.detach(node)
        is_new = node is None
        if node is None:
            node = self._new_node(command)
            self.drains.set(node, command.draining)
            self.silence.watch(node)
        if node.claimant is not None:  # it came back in time
            self.claims.refuse(node, node.claimant)
        node.stream = command.stream
        node.where = command.where
        node.host_id = command.host_id
        node.zone = command.zone
        for segment in node.segments:
            segment.refer()
        node.on(Event.HELLO)
        state.absences.begin(node.node_id, node.incarnation, (), is_new=is_new)  # nobody knows yet what it holds
        node.heard_at = state.now
        node.probed_at = None
        node.inventory = []
        state.streams[command.stream] = node
        numbers = [segment.number for segment in node.segments]
        state.effects.append(m.Welcome(command.stream, state.epoch, numbers, state.config.heartbeat_ms))
        if node.draining is not command.draining:
            self.drains.tell(node)

    def _new_node(self, command: m.Hello) -> Node:
        node = Node(command.node_id, command.incarnation, self.state.now)
        self.state.nodes[command.node_id] = node
        for info in command.segments:
            segment = Segment(self.state.number(), node, info, self.state.traffic, self.state.config.high_watermark)
            self.state.segments[segment.number] = segment
            node.segments.append(segment)
            # An earlier master, or this one before it gave the node up, may have let writes begin there.
            segment.fenced = command.epoch > 0
        return node

    # ---- what an attached node says --------------------------------------------------------------

    def inventory(self, command: m.Inventory) -> None:
        node = self._speaker(command.stream)
        if node is not None and node.phase is Phase.ATTACHING:
            node.inventory.extend(command.copies)
            if len(node.inventory) > sum(segment.capacity for segment in node.segments) // ALIGN_BYTES:
                self.state.close(command.stream, "the inventory has more copies than fit into the pools")
                self.silence.detach(node)
                node.inventory = []

    def inventory_end(self, command: m.InventoryEnd) -> None:
        node = self._speaker(command.stream)
        if node is None or node.phase is not Phase.ATTACHING or node in self.adoptions:
            return
        claims, node.inventory = node.inventory, []
        away = self.state.absences.of(node.node_id, node.incarnation)
        adoption = self.adoptions[node] = Adoption(
            self.state, self.extents, self.catalogue, node, away, claims, self.repair.want
        )
        self._adopt(node, adoption)

    def _adopt(self, node: Node, adoption: Adoption) -> None:
        if self.adoptions.get(node) is not adoption:
            return  # its stream has ended meanwhile
        if not adoption.advance(self.state.config.adopted_per_step_max):
            self.state.at(self.state.now, lambda: self._adopt(node, adoption))
            return
        del self.adoptions[node]
        self.state.absences.end(node.node_id)
        self._live(node, Event.ADOPTED)

    def heartbeat(self, command: m.Heartbeat) -> None:
        self._speaker(command.stream)

    def ack(self, command: m.Ack) -> None:
        node = self._speaker(command.stream)
        if node is None:
            self.state.counters.stale_messages += 1
            return
        senders = node.outstanding
        for command_id, reason in zip_longest(command.failed_ids, command.failed_reasons[: len(command.failed_ids)]):
            if sender := senders.pop(command_id, None):
                sender.refused(command_id, reason or "the node does not say why", source_is_corrupt=False)
        for command_id in command.corrupt_ids:
            if sender := senders.pop(command_id, None):
                sender.refused(command_id, "its source is corrupt", source_is_corrupt=True)
        for command_id in command.command_ids:
            if sender := senders.pop(command_id, None):
                sender.done(command_id)

    def leave(self, command: m.Leave) -> None:
        node = self._speaker(command.stream)
        if node is not None:
            self._let_go(node)

    def _let_go(self, node: Node) -> None:
        assert node.stream is not None
        done = f"the drain of node {node.node_id} has ended: it" if node.draining else f"node {node.node_id}"
        self.state.note(f"{done} leaves")
        self.state.effects.append(m.Farewell(node.stream, self.state.epoch))
        self.state.absences.end(node.node_id)  # it takes nothing with it
        self.silence.detach(node)
        self.silence.give_up(node)

    def broken(self, command: m.Broken) -> None:
        node = self.state.streams.get(command.stream)
        if node is not None:
            self.silence.detach(node)
        else:
            self.claims.withdraw(command.stream)

    def _speaker(self, stream: int) -> Node | None:
        """The node of a stream, which has just been heard; None if the stream is no longer its node's."""
        node = self.state.streams.get(stream)
        if node is None:
            return None
        node.heard_at = self.state.now
        if node.claimant is not None:
            self.claims.refuse(node, node.claimant)
        if node.probed_at is not None:
            node.probed_at = None
            self.repair.look_again()
        if node.phase is Phase.SILENT:
            # It was only slow. On the same stream it is told to forget what was dropped meanwhile.
            self._live(node, Event.HEARD)
        return node

    def _suspected(self, node: Node) -> None:
        """It fell silent, or its stream has ended."""
        adoption = self.adoptions.pop(node, None)
        if adoption is not None:
            adoption.end()
        if node.claimant is not None:
            self.claims.yield_later(node)

    def _live(self, node: Node, event: Event) -> None:
        node.on(event)
        for segment in node.segments:
            segment.live = True
        self.state.space_freed = True  # waiting puts may be placed here
        self.repair.node_is_live(node)
