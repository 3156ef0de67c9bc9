"""Slices on their way from node to node: what is sent and how fast, and what comes free when one has ended.

Which slice, from where and to where is decided in `repair`. Keeps invariant 7 (a source stays where it is while it is
read, a target is nobody else's) and 12 (bounded in number and in bytes a second).
"""

from services.master.core import messages as m
from services.master.core.cluster import Node, Transfer
from services.master.core.extents import Extents
from services.master.core.links import Links
from services.master.core.objects import Copy, Object, Slice
from services.master.core.tables import State

TRANSFERS_MAX = 64  # under way at once, in all


class Transfers:
    def __init__(self, state: State, extents: Extents) -> None:
        self.state = state
        self.extents = extents
        self.links = Links(state)
        self.under_way: dict[int, Transfer] = {}
        self._budget_bytes = state.config.repair_bytes_per_s / 4  # as in refill
        self._budget_at = state.now

    @property
    def are_many(self) -> bool:
        return len(self.under_way) >= TRANSFERS_MAX

    @property
    def may_begin(self) -> bool:
        return self._budget_bytes > 0 and not self.are_many

    def refill(self) -> None:
        """Count what may be sent since it was last counted."""
        rate = self.state.config.repair_bytes_per_s
        elapsed_ms = self.state.now - self._budget_at
        self._budget_at = self.state.now
        burst = rate / 4  # a quarter of a second's worth
        self._budget_bytes = min(burst, self._budget_bytes + rate * elapsed_ms / 1000)

    def budget_at(self) -> int:
        """When the budget allows more."""
        return self.state.now + max(1, int(-self._budget_bytes * 1000 / self.state.config.repair_bytes_per_s) + 1)

    def has(self, obj: Object, number: int) -> bool:
        return any(t.obj is obj and t.number == number for t in self.under_way.values())

    def send(self, obj: Object, number: int, part: Slice, source: Copy, target: Copy) -> tuple[int, int]:
        """The command's number, and when the transfer has failed at the latest."""
        state, config = self.state, self.state.config
        giver, node = state.segments[source.segment].node, state.segments[target.segment].node
        assert node.stream is not None
        command_id = state.number()
        is_trial = self.links.begin(giver, node)
        transfer = Transfer(obj, number, part.length, source, target, giver, node, state.now, is_trial=is_trial)
        self.under_way[command_id] = node.copying[command_id] = transfer
        self._budget_bytes -= part.length
        # The node counts its time from when the message reaches it: it has given up long before this core does, and
        # never records what has been forgotten.
        until = state.now + 2 * config.repair_timeout_ms
        state.read_until[source] = until  # the source stays where it is
        held = m.HeldCopy(
            obj.key, obj.write_id, obj.size, len(obj.slices), number,
            target.segment, target.offset, part.length, part.checksum, obj.depth, obj.wanted,
            max(1, obj.expires_at - state.now) if obj.expires_at else 0, obj.pin,
        )  # fmt: skip
        state.effects.append(
            m.Fetch(node.stream, command_id, held, source.segment, source.offset, config.repair_timeout_ms)
        )
        return command_id, until

    def take(self, node: Node, command_id: int) -> Transfer | None:
        """It has ended, however it did; None where that was known."""
        transfer = node.copying.pop(command_id, None)
        if transfer is not None:
            del self.under_way[command_id]
            if not any(other.source == transfer.source for other in self.under_way.values()):
                del self.state.read_until[transfer.source]
            if transfer.is_trial:
                self.links.end_trial(transfer.giver, transfer.node)
        return transfer

    def note_failure(self, transfer: Transfer, reason: str) -> None:
        """The pair rests; said once a rest, with why."""
        giver, taker = transfer.giver, transfer.node
        rest = self.links.failed(giver, taker, transfer.begun_at)
        if rest is None:
            return
        failures, rest_ms = rest
        segment = self.state.segments.get(transfer.source.segment)
        endpoint = segment.info.engine_endpoint if segment is not None else ""
        way = f"{giver.node_id}{f' ({endpoint})' if endpoint else ''} to {taker.node_id}"
        self.state.note(
            f"no copy gets from node {way}: {reason}; failures in a row: {failures}, next try in {rest_ms / 1000:g} s",
            grave=True,
        )

    def give_back(self, transfer: Transfer) -> None:
        """The target's extent, which its node may have recorded."""
        write_id = transfer.obj.write_id
        self.extents.release(transfer.target, transfer.length, write_id, not_before=self.state.now, recorded=True)
