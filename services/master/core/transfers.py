"""Slices on their way from node to node: what is sent, how fast, and what becomes of it.

Which slice, from where and to where, and what follows from the outcome, is for whoever asked to decide (`Owner`).
Keeps invariant 7 (a source stays where it is while it is read, a target is nobody else's) and 12 (bounded in number and
in bytes a second).
"""

from typing import Protocol

from services.master.core import messages as m
from services.master.core.catalogue import Catalogue
from services.master.core.cluster import Node
from services.master.core.extents import Extents
from services.master.core.links import Links
from services.master.core.objects import Copy, Object, held
from services.master.core.tables import State

TRANSFERS_MAX = 64  # under way at once, in all


class Transfer:
    """One slice on its way from node to node; its target extent is reserved."""

    __slots__ = ("begun_at", "giver", "is_trial", "length", "node", "number", "obj", "owner", "source", "target")

    def __init__(
        self, owner: "Owner", obj: Object, number: int, source: Copy, target: Copy, giver: Node, node: Node, now: int
    ) -> None:
        self.owner = owner
        self.obj = obj
        self.number = number  # of the slice
        self.length = obj.slices[number].length
        self.source = source
        self.target = target
        self.giver = giver  # the source's node
        self.node = node  # the target's
        self.begun_at = now
        self.is_trial = False  # the one try of a pair between which copies failed


class Owner(Protocol):
    """Whoever asked for a transfer: told once how it ended, after the tables are up to date."""

    def arrived(self, transfer: Transfer, *, opens_way: bool) -> None:
        """The copy is in the catalogue. `opens_way`: copies between these two nodes had failed before."""

    def came_too_late(self, transfer: Transfer) -> None:
        """The copy was made, but its object has gone."""

    def failed(self, transfer: Transfer) -> None:
        """The node could not, or not in time, or is silent or away."""

    def source_is_corrupt(self, transfer: Transfer) -> None:
        """It failed because the source is not what was recorded: send no further reader there."""


class Transfers:
    outlives_silence = False

    def __init__(self, state: State, extents: Extents, catalogue: Catalogue) -> None:
        self.state = state
        self.extents = extents
        self.catalogue = catalogue
        self.links = Links(state)
        self.under_way: dict[int, Transfer] = {}  # by the command's number
        self._budget_bytes = state.config.repair_bytes_per_s / 4  # as in refill
        self._budget_at = state.now

    # ---- how much --------------------------------------------------------------------------------

    @property
    def are_many(self) -> bool:
        return len(self.under_way) >= TRANSFERS_MAX

    @property
    def may_begin(self) -> bool:
        return self._budget_bytes > 0 and not self.are_many

    def refill(self) -> None:
        """Add what may be sent for the time since the last call."""
        rate = self.state.config.repair_bytes_per_s
        elapsed_ms = self.state.now - self._budget_at
        self._budget_at = self.state.now
        burst = rate / 4  # a quarter of a second's worth
        self._budget_bytes = min(burst, self._budget_bytes + rate * elapsed_ms / 1000)

    def budget_at(self) -> int:
        """When the budget will allow more."""
        return self.state.now + max(1, int(-self._budget_bytes * 1000 / self.state.config.repair_bytes_per_s) + 1)

    # ---- sending ---------------------------------------------------------------------------------

    def has(self, obj: Object, number: int) -> bool:
        return any(t.obj is obj and t.number == number for t in self.under_way.values())

    def send(self, owner: Owner, obj: Object, number: int, source: Copy, target: Copy) -> None:
        """Have slice `number` copied from `source` into the reserved extent `target`."""
        state, config, part = self.state, self.state.config, obj.slices[number]
        giver, node = state.segments[source.segment].node, state.segments[target.segment].node
        assert node.stream is not None
        command_id = state.number()
        transfer = Transfer(owner, obj, number, source, target, giver, node, state.now)
        transfer.is_trial = self.links.begin(giver, node)
        self.under_way[command_id] = transfer
        node.outstanding[command_id] = self
        self._budget_bytes -= part.length
        # The node counts from when the message reaches it: it gives up long before this core does, and never records
        # what has been forgotten.
        until = state.now + 2 * config.repair_timeout_ms
        state.read_until[source] = until  # the source stays where it is
        record = held(obj, number, part, target)
        ref = state.segments[source.segment].ref
        state.effects.append(
            m.Fetch(node.stream, state.epoch, command_id, record, ref, source.offset, config.repair_timeout_ms)
        )
        state.at(until, lambda: self._time_out(command_id))

    # ---- outcomes --------------------------------------------------------------------------------

    def done(self, command_id: int) -> None:
        """The node holds the copy, verified and recorded."""
        transfer = self._take(command_id)
        obj = transfer.obj
        if self.state.objects.get(obj.key) is not obj:
            self._give_back(transfer)
            transfer.owner.came_too_late(transfer)
            return
        self.catalogue.add_copy(obj, obj.slices[transfer.number], transfer.target)
        opens_way = self.links.worked(transfer.giver, transfer.node)
        transfer.owner.arrived(transfer, opens_way=opens_way)

    def refused(self, command_id: int, reason: str, *, source_is_corrupt: bool) -> None:
        """The node could not. Its source may be unwell, or its bytes are not what was recorded."""
        transfer = self.under_way[command_id]
        if source_is_corrupt:
            self._fail(command_id)
            transfer.owner.source_is_corrupt(transfer)
        else:
            self.state.unreached.append(transfer.source.segment)
            self._fail(command_id, reason)

    def cut_off(self, command_id: int) -> None:
        self._fail(command_id)

    def _time_out(self, command_id: int) -> None:
        transfer = self.under_way.get(command_id)
        if transfer is not None:
            del transfer.node.outstanding[command_id]
            self._fail(command_id, "it did not end in time")

    def _fail(self, command_id: int, reason: str = "") -> None:
        """Nothing lands late: a node reads into memory of its own first.

        `reason`: what is wrong between the two nodes; empty if nothing is known to be.
        """
        transfer = self._take(command_id)
        self._give_back(transfer)
        if reason:
            self._note_failure(transfer, reason)
        transfer.owner.failed(transfer)

    def _take(self, command_id: int) -> Transfer:
        """It has ended, one way or another."""
        transfer = self.under_way.pop(command_id)
        if not any(other.source == transfer.source for other in self.under_way.values()):
            del self.state.read_until[transfer.source]
        if transfer.is_trial:
            self.links.end_trial(transfer.giver, transfer.node)
        return transfer

    def _give_back(self, transfer: Transfer) -> None:
        """Release the target's extent, which its node may have recorded."""
        write_id = transfer.obj.write_id
        self.extents.release(transfer.target, transfer.length, write_id, not_before=self.state.now, recorded=True)

    def _note_failure(self, transfer: Transfer, reason: str) -> None:
        """The pair rests, which is said once a rest, with the reason."""
        giver, taker = transfer.giver, transfer.node
        rest = self.links.failed(giver, taker, transfer.begun_at)
        if rest is None:
            return
        failures, rest_ms = rest
        segment = self.state.segments.get(transfer.source.segment)
        endpoint = segment.info.address if segment is not None else ""
        way = f"{giver.node_id}{f' ({endpoint})' if endpoint else ''} to {taker.node_id}"
        self.state.note(
            f"no copy gets from node {way}: {reason}; failures in a row: {failures}, next try in {rest_ms / 1000:g} s",
            grave=True,
        )
