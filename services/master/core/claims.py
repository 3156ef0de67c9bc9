"""Two processes with one node id: which of them has it.

The known one is asked for a heartbeat, and keeps the id if that comes in time. Keeps invariant 6: a stranger changes
nothing for a node that lives.
"""

from collections.abc import Callable

from services.master.core import messages as m
from services.master.core.cluster import Node
from services.master.core.phases import Phase
from services.master.core.silence import Silence
from services.master.core.tables import State


class Claims:
    def __init__(self, state: State, silence: Silence, admit: Callable[[m.Hello], None]) -> None:
        self.state = state
        self.silence = silence
        self.waiting: dict[int, m.Hello] = {}  # by stream: who wants the id of a node
        self._admit = admit

    def is_over(self, node: Node) -> bool:
        """Whether a node has had its time to show that it lives, by its stream or by dialling again."""
        away_ms = self.state.now - node.suspect_since
        return node.phase is Phase.AWAY and away_ms >= self.state.config.probe_ms

    def claim(self, node: Node, command: m.Hello) -> None:
        """Another process wants a node's id: the node is asked whether it lives. The latest claim counts."""
        if node.claimant is not None:
            self.refuse(node, node.claimant)
        node.claimant = command.stream
        self.waiting[command.stream] = command
        if node.stream is None:
            self.yield_later(node)
        else:
            self.silence.probe(node)

    def yield_later(self, node: Node) -> None:
        """Let the claimant have the id: at once if the node was silent; if its stream broke, it may still dial."""
        claimant = node.claimant
        wait_until = node.suspect_since + self.state.config.probe_ms if node.stream is None else 0

        def give() -> None:
            if claimant is None or node.claimant != claimant:
                return  # the node is back, or the claimant has gone
            node.claimant = None
            command = self.waiting.pop(claimant)
            if node.stream is not None:
                self.state.close(node.stream, f"silent while {command.where} asked for its node id")
            if self.state.nodes.get(node.node_id) is node:
                self.silence.give_up(node)
            self._admit(command)

        self.state.at(max(wait_until, self.state.now), give)

    def refuse(self, node: Node, stream: int) -> None:
        if self.waiting.pop(stream, None) is not None:
            node.claimant = None
        reason = f"node id {node.node_id} belongs to a storage node on {node.where}: give another --node-id"
        self.state.effects.append(m.Close(stream, self.state.epoch, reason, id_taken=True))

    def withdraw(self, stream: int) -> None:
        """The claimant on this stream has gone."""
        claim = self.waiting.pop(stream, None)
        if claim is not None and (wanted := self.state.nodes.get(claim.node_id)) is not None:
            wanted.claimant = None
