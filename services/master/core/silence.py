"""Nodes that do not answer: probes, suspicion, and in the end giving them up.

Keeps invariant 9: a silent node's copies are not offered, and nothing leaks when it returns. The phases are in
`phases`; what goes with a lost node is in `losses`.
"""

from collections.abc import Callable

from services.master.core import messages as m
from services.master.core.cluster import Node
from services.master.core.drain import Drains
from services.master.core.ends import Ends
from services.master.core.extents import Extents
from services.master.core.losses import Losses
from services.master.core.phases import Event, Phase
from services.master.core.quarantine import UNACKNOWLEDGED
from services.master.core.repair import Repair
from services.master.core.tables import State


class Silence:
    def __init__(
        self,
        state: State,
        extents: Extents,
        repair: Repair,
        ends: Ends,
        drains: Drains,
        losses: Losses,
        *,
        suspected: Callable[[Node], None],
        let_go: Callable[[Node], None],
    ) -> None:
        """`suspected` is called for nodes that fell silent or went away, `let_go` for drained ones that may leave."""
        self.state = state
        self.extents = extents
        self.repair = repair
        self.ends = ends
        self.drains = drains
        self.losses = losses
        self._suspected = suspected
        self._let_go = let_go

    def excuse(self, gap_ms: int) -> None:
        """The master itself stood still for a while, which is not the nodes' silence."""
        for node in self.state.nodes.values():
            node.heard_at = min(node.heard_at + gap_ms, self.state.now)
            if node.probed_at is not None:
                node.probed_at = min(node.probed_at + gap_ms, self.state.now)

    def probe_unreached(self) -> None:
        """Ask the nodes that clients could not reach for a heartbeat, rather than wait until they fall silent."""
        numbers, self.state.unreached = self.state.unreached, []
        for number in numbers:
            segment = self.state.segments.get(number)
            node = segment.node if segment is not None else None
            if node is not None and node.phase is Phase.LIVE:
                self.probe(node)

    def probe(self, node: Node) -> None:
        """Ask a node with a stream for a heartbeat now."""
        if node.probed_at is not None:
            return
        assert node.stream is not None
        node.probed_at = self.state.now
        self.state.counters.probes += 1
        self.state.effects.append(m.Ping(node.stream, self.state.epoch))
        if not node.awaited:
            self._await_word(node, node.probed_at)

    def _await_word(self, node: Node, asked_at: int) -> None:
        def look() -> None:
            node.awaited = False
            if node.probed_at is None:
                return
            if node.probed_at > asked_at:  # it was asked again later, or the master stood still meanwhile
                self._await_word(node, node.probed_at)
                return
            self.state.counters.failed_probes += 1
            self._fell_silent(node)

        node.awaited = True
        self.state.at(asked_at + self.state.config.probe_ms, look)

    def watch(self, node: Node) -> None:
        """Look at a node in every heartbeat's time, until it is gone."""
        config = self.state.config

        def look() -> None:
            if self.state.nodes.get(node.node_id) is not node:
                return
            if node.phase.is_suspect:
                if self.state.now - node.suspect_since >= config.lost_ms:
                    self._lose(node)
                    return
            elif self.state.now - node.heard_at >= config.silence_ms:
                self._fell_silent(node)
            elif node.draining and self.drains.is_empty(node):
                self._let_go(node)
                return
            self.state.at(self.state.now + config.heartbeat_ms, look)

        self.state.at(self.state.now + config.heartbeat_ms, look)

    def _lose(self, node: Node) -> None:
        """It was away too long. If it returns, what it was told to forget must not return with it."""
        if node.stream is not None:
            self.state.close(node.stream, "silent for too long")
            self.detach(node)
        entries = [entry for segment in node.segments for entry in segment.quarantine.values()]
        unforgotten = [entry.write_id for entry in entries if entry.hold in UNACKNOWLEDGED]
        self.state.absences.begin(node.node_id, node.incarnation, unforgotten)
        copies = sum(segment.copies for segment in node.segments)
        away_s = (self.state.now - node.suspect_since) / 1000
        self.state.note(f"node {node.node_id} is lost, away for {away_s:.0f} s: copies: {copies}", grave=True)
        self.give_up(node)

    def _fell_silent(self, node: Node) -> None:
        if node.phase is Phase.ATTACHING:
            assert node.stream is not None
            self.state.close(node.stream, "silent during its inventory")
            self.detach(node)
        else:
            self.state.note(f"node {node.node_id} does not answer: its copies are not offered", grave=True)
            self._suspect(node, Event.SILENCE)

    def detach(self, node: Node) -> None:
        """Its stream has ended: it is away at once."""
        assert node.stream is not None
        del self.state.streams[node.stream]
        node.stream = None
        self._suspect(node, Event.CUT)

    def _suspect(self, node: Node, event: Event) -> None:
        was_suspect = node.phase.is_suspect
        node.on(event)
        node.probed_at = None
        if not was_suspect:
            node.suspect_since = self.state.now
            self.repair.suspected(node)
        for segment in node.segments:
            segment.live = False
            for entry in segment.quarantine.values():
                self.extents.wait_no_more(entry)
        for command_id, sender in list(node.outstanding.items()):
            if node.stream is None or not sender.outlives_silence:
                del node.outstanding[command_id]
                sender.cut_off(command_id)
        self.repair.look_again()
        self._suspected(node)

    def give_up(self, node: Node) -> None:
        """Its copies are lost."""
        if node.stream is not None:
            self.detach(node)
        node.on(Event.GIVEN_UP)
        self.repair.look_again()
        self.drains.set(node, False)
        del self.state.nodes[node.node_id]
        self.ends.given_up(node)
        self.losses.begin(node)
