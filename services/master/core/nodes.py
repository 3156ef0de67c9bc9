"""Life and death of storage nodes: hello, inventory, heartbeats, acknowledgements, silence, loss, leave.

Keeps invariants 6 (old epochs and incarnations change nothing), 8 (inventories are adopted before anything new is
placed; conflicting claims are dropped, never served), 9 (a dead node's copies are not offered, and nothing leaks when
it returns).
"""

from collections import deque
from itertools import zip_longest

from services.master.core import messages as m
from services.master.core.adoption import Adoption
from services.master.core.allocator import ALIGN_BYTES
from services.master.core.catalogue import Catalogue
from services.master.core.cluster import Node, Phase, Segment
from services.master.core.drain import Drains
from services.master.core.extents import Extents
from services.master.core.objects import Object
from services.master.core.puts import Puts
from services.master.core.quarantine import UNACKNOWLEDGED
from services.master.core.repair import Repair
from services.master.core.tables import Departed, State

DEPARTED_MAX = 4_096  # segments remembered: no answer to a retry is older
SWEEP_PER_STEP = 1_024  # objects of a lost segment that one step sees to: a step must stay short


class Nodes:
    def __init__(
        self, state: State, extents: Extents, catalogue: Catalogue, puts: Puts, repair: Repair, drains: Drains
    ) -> None:
        self.state = state
        self.extents = extents
        self.catalogue = catalogue
        self.puts = puts
        self.repair = repair
        self.drains = drains
        self.adoptions: dict[Node, Adoption] = {}  # of inventories that are complete
        self.sweeping: deque[Segment] = deque()
        self.claims: dict[int, m.Hello] = {}  # by stream: who waits for a word of a node whose id it wants

    # ---- attachment ------------------------------------------------------------------------------

    def hello(self, command: m.Hello) -> None:
        """A node dials: known (its stream broke, or it took another) or new, or a later life of a known one."""
        state = self.state
        if not command.node_id or not command.segments or any(s.capacity_bytes <= 0 for s in command.segments):
            state.effects.append(m.Close(command.stream, "hello needs a node id and segments with capacity"))
            return
        node = state.nodes.get(command.node_id)
        if command.epoch > state.epoch or (command.epoch == state.epoch and node is None):
            state.begin_epoch(command.epoch + 1)  # it obeyed a master that this one's clock does not put before it
        if node is not None and command.incarnation < node.incarnation:
            state.counters.stale_messages += 1
            self._refuse(node, command.stream)
            return
        if node is not None and not node.is_life_of(command):
            if not self._is_over(node):
                self._claim(node, command)
                return
            state.note(f"node {node.node_id} begins a new life, and empty: what it held is lost", grave=True)
            self._give_up(node)
            node = None
        if node is not None and node.stream is not None:
            state.effects.append(m.Close(node.stream, "the node attached again"))
            self._detach(node)
        if node is None:
            node = self._new_node(command)
            self.drains.set(node, command.draining)
            self._watch(node)
        if node.claimant is not None:  # it came back in time
            self._refuse(node, node.claimant)
        node.stream = command.stream
        node.where = command.where
        node.host_id = command.host_id
        node.zone = command.zone
        node.phase = Phase.ATTACHING
        state.absences.begin(node.node_id, node.incarnation, ())  # of what it holds nobody knows until it has said it
        node.heard_at = state.now
        node.probed_at = None
        node.inventory = []
        state.streams[command.stream] = node
        state.effects.append(m.Welcome(command.stream, [segment.number for segment in node.segments]))
        if node.draining is not command.draining:
            self.drains.tell(node)

    def _new_node(self, command: m.Hello) -> Node:
        node = Node(command.node_id, command.incarnation, command.host_id, command.stream, self.state.now)
        self.state.nodes[command.node_id] = node
        for info in command.segments:
            segment = Segment(self.state.number(), node, info, self.state.traffic, self.state.config.high_watermark)
            self.state.segments[segment.number] = segment
            node.segments.append(segment)
            # Under an earlier master, or before it was given up, writes may have begun there that nobody here knows of.
            segment.fenced = command.epoch > 0
        return node

    # ---- two processes with one id ---------------------------------------------------------------

    def _is_over(self, node: Node) -> bool:
        """Whether a node has had its time to say that it lives: by its stream, or by dialling again."""
        away_ms = self.state.now - node.suspect_since
        return node.stream is None and node.phase is Phase.SUSPECT and away_ms >= self.state.config.probe_ms

    def _claim(self, node: Node, command: m.Hello) -> None:
        """Another process wants the id: the node is asked whether it lives. The latest claim counts."""
        if node.claimant is not None:
            self._refuse(node, node.claimant)
        node.claimant = command.stream
        self.claims[command.stream] = command
        if node.stream is None:
            self._yield_later(node)
        else:
            self._probe(node)

    def _yield_later(self, node: Node) -> None:
        """Who claims the id shall have it, at once where the node was silent; where its stream broke, it may dial."""
        claimant = node.claimant
        wait_until = node.suspect_since + self.state.config.probe_ms if node.stream is None else 0

        def give() -> None:
            if claimant is None or node.claimant != claimant:
                return  # the node is back, or the claimant gone
            node.claimant = None
            command = self.claims.pop(claimant)
            if node.stream is not None:
                self.state.effects.append(m.Close(node.stream, f"silent while {command.where} asked for its node id"))
            if self.state.nodes.get(node.node_id) is node:
                self._give_up(node)
            self.hello(command)

        self.state.at(max(wait_until, self.state.now), give)

    def _refuse(self, node: Node, stream: int) -> None:
        if self.claims.pop(stream, None) is not None:
            node.claimant = None
        reason = f"node id {node.node_id} belongs to a storage node on {node.where}: give another --node-id"
        self.state.effects.append(m.Close(stream, reason, id_taken=True))

    # ---- what an attached node says --------------------------------------------------------------

    def inventory(self, command: m.Inventory) -> None:
        node = self._speaker(command.stream)
        if node is not None and node.phase is Phase.ATTACHING:
            node.inventory.extend(command.copies)
            if len(node.inventory) > sum(segment.capacity for segment in node.segments) // ALIGN_BYTES:
                self.state.effects.append(
                    m.Close(command.stream, "the inventory has more copies than fit into the pools")
                )
                self._detach(node)
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
        self._live(node)

    def heartbeat(self, command: m.Heartbeat) -> None:
        self._speaker(command.stream)

    def ack(self, command: m.Ack) -> None:
        node = self._speaker(command.stream)
        if node is None:
            self.state.counters.stale_messages += 1
            return
        for command_id, reason in zip_longest(command.failed_ids, command.failed_reasons[: len(command.failed_ids)]):
            self.puts.not_recorded(node, [command_id])
            self.repair.refused(node, command_id, reason or "the node does not say why")
        for command_id in command.corrupt_ids:
            self.repair.source_is_corrupt(node, command_id)
        for command_id in command.command_ids:
            self.puts.recorded(node, command_id)
            self.repair.done(node, command_id)
            for entry in node.forgetting.pop(command_id, ()):
                self.extents.forgotten(entry)

    def leave(self, command: m.Leave) -> None:
        node = self._speaker(command.stream)
        if node is not None:
            self._let_go(node)

    def _let_go(self, node: Node) -> None:
        assert node.stream is not None
        done = f"the drain of node {node.node_id} has ended: it" if node.draining else f"node {node.node_id}"
        self.state.note(f"{done} leaves")
        self.state.effects.append(m.Farewell(node.stream))
        self.state.absences.end(node.node_id)  # it takes nothing with it
        self._detach(node)
        self._give_up(node)

    def broken(self, command: m.Broken) -> None:
        node = self.state.streams.get(command.stream)
        claim = self.claims.pop(command.stream, None)
        if node is not None:
            self._detach(node)
        elif claim is not None and (wanted := self.state.nodes.get(claim.node_id)) is not None:
            wanted.claimant = None

    def _speaker(self, stream: int) -> Node | None:
        """The node of a stream, which has just been heard; None for streams that were given up."""
        node = self.state.streams.get(stream)
        if node is None:
            return None
        node.heard_at = self.state.now
        if node.claimant is not None:
            self._refuse(node, node.claimant)
        if node.probed_at is not None:
            node.probed_at = None
            self.repair.look_again()
        if node.phase is Phase.SUSPECT:
            # It was only slow. What was taken from it meanwhile it is told to forget, on the same stream.
            self._live(node)
        return node

    def _live(self, node: Node) -> None:
        node.phase = Phase.LIVE
        for segment in node.segments:
            segment.live = True
        self.state.space_freed = True  # waiting puts may be placed here
        self.repair.node_is_live(node)

    def excuse(self, gap_ms: int) -> None:
        """The master itself did not run for a while: that is nobody's silence."""
        for node in self.state.nodes.values():
            node.heard_at = min(node.heard_at + gap_ms, self.state.now)
            if node.probed_at is not None:
                node.probed_at = min(node.probed_at + gap_ms, self.state.now)

    # ---- silence and death -----------------------------------------------------------------------

    def probe_unreached(self) -> None:
        """Ask the nodes that clients could not reach for a word, rather than wait until silence tells."""
        numbers, self.state.unreached = self.state.unreached, []
        for number in numbers:
            segment = self.state.segments.get(number)
            node = segment.node if segment is not None else None
            if node is not None and node.phase is Phase.LIVE:
                self._probe(node)

    def _probe(self, node: Node) -> None:
        if node.probed_at is not None:
            return
        assert node.stream is not None
        node.probed_at = self.state.now
        self.state.counters.probes += 1
        self.state.effects.append(m.Ping(node.stream))
        if not node.awaited:
            self._await_word(node, node.probed_at)

    def _await_word(self, node: Node, asked_at: int) -> None:
        def look() -> None:
            node.awaited = False
            if node.probed_at is None:
                return
            if node.probed_at > asked_at:  # a later probe, or the master stood still meanwhile
                self._await_word(node, node.probed_at)
                return
            self.state.counters.failed_probes += 1
            self._fell_silent(node)

        node.awaited = True
        self.state.at(asked_at + self.state.config.probe_ms, look)

    def _watch(self, node: Node) -> None:
        """Look at a node when it would be due for suspicion, and again until it is gone."""
        config = self.state.config

        def look() -> None:
            if self.state.nodes.get(node.node_id) is not node:
                return
            if node.phase is Phase.SUSPECT:
                if self.state.now - node.suspect_since >= config.lost_ms:
                    if node.stream is not None:
                        self.state.effects.append(m.Close(node.stream, "silent for too long"))
                        self._detach(node)
                    entries = [entry for segment in node.segments for entry in segment.quarantine.values()]
                    unforgotten = [entry.write_id for entry in entries if entry.hold in UNACKNOWLEDGED]
                    self.state.absences.begin(node.node_id, node.incarnation, unforgotten)
                    copies = sum(segment.copies for segment in node.segments)
                    away_s = (self.state.now - node.suspect_since) / 1000
                    self.state.note(
                        f"node {node.node_id} is lost, away for {away_s:.0f} s: copies: {copies}", grave=True
                    )
                    self._give_up(node)
                    return
            elif self.state.now - node.heard_at >= config.silence_ms:
                self._fell_silent(node)
            elif node.draining and self.drains.is_empty(node):
                self._let_go(node)
                return
            self.state.at(self.state.now + config.heartbeat_ms, look)

        self.state.at(self.state.now + config.heartbeat_ms, look)

    def _fell_silent(self, node: Node) -> None:
        if node.phase is Phase.ATTACHING and node.stream is not None:
            self.state.effects.append(m.Close(node.stream, "silent during its inventory"))
            self._detach(node)
        else:
            self.state.note(f"node {node.node_id} does not answer: its copies are not offered", grave=True)
            self._suspect(node)

    def _detach(self, node: Node) -> None:
        """The stream is over: suspect at once."""
        assert node.stream is not None
        del self.state.streams[node.stream]
        node.stream = None
        node.forgetting = {}  # what is still forgetting is known by the segments' quarantine
        self._suspect(node)

    def _suspect(self, node: Node) -> None:
        node.probed_at = None
        adoption = self.adoptions.pop(node, None)
        if adoption is not None:
            adoption.end()
        if node.phase is not Phase.SUSPECT:
            node.phase = Phase.SUSPECT
            node.suspect_since = self.state.now
            self.repair.suspected(node)
        for segment in node.segments:
            segment.live = False
            for entry in segment.quarantine.values():
                self.extents.settle_remove(entry)
        self.puts.not_recorded(node, list(node.recording))
        self.repair.node_is_away(node)
        self.repair.look_again()
        if node.claimant is not None:
            self._yield_later(node)

    def _give_up(self, node: Node) -> None:
        """The node's copies are lost. Its objects are seen to a few at a time."""
        self._suspect(node)
        if node.stream is not None:
            del self.state.streams[node.stream]
            node.stream = None
        self.drains.set(node, False)
        del self.state.nodes[node.node_id]
        self.puts.given_up(node)
        for segment in node.segments:
            segment.gone = True
            self.sweeping.append(segment)
        self.sweep()

    def sweep(self) -> None:
        """Take the copies of lost segments from their objects; bounded work a step."""
        budget = SWEEP_PER_STEP
        while self.sweeping and budget:
            segment = self.sweeping[0]
            while segment.residents and budget:
                budget -= 1
                self._lose(next(iter(segment.residents)), segment)
            if not segment.residents:
                self.sweeping.popleft()
                self._depart(segment)
        if self.sweeping:
            self.state.at(self.state.now, self.sweep)

    def _depart(self, segment: Segment) -> None:
        state, node = self.state, segment.node
        del state.segments[segment.number]
        state.departed[segment.number] = Departed(node.node_id, node.host_id, node.zone, segment.info)
        if len(state.departed) > DEPARTED_MAX:
            state.departed.popitem(last=False)

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
