"""The life of an extent after it was placed: how it returns to the allocator, and what its node is told.

Keeps invariants 3 (extents disjoint, bytes add up) and 7 (no reuse while a lease, a late write or the node's own record
could still touch an extent). What an extent waits for is drawn in `quarantine`.
"""

from collections.abc import Callable, Iterable

from services.master.core.allocator import aligned
from services.master.core.cluster import Node, Quarantined, Segment
from services.master.core.messages import Forget
from services.master.core.objects import Copy
from services.master.core.pending import PendingForgets
from services.master.core.phases import Phase
from services.master.core.quarantine import TRANSITIONS, UNACKNOWLEDGED, Event, Hold
from services.master.core.tables import State

_FREE, _WATCHED, _LEASED = Hold.FREE, Hold.WATCHED, Hold.LEASED  # members of an enum are slow to look up
_FORGETTING, _ACKNOWLEDGED = Hold.FORGETTING, Event.ACKNOWLEDGED
EXTENTS_PER_FORGET = 8_192  # of either kind: messages are bounded, and a node has other things to do, too
WATCHED_PER_FORGET = 64  # a stopped writer holds up no more extents than these


class Extents:
    outlives_silence = True

    def __init__(self, state: State) -> None:
        self.state = state
        self.told: dict[int, list[Quarantined]] = {}  # what a node was told to forget, by the command's number

    def release(self, copy: Copy, length: int, write_id: int, *, not_before: int, recorded: bool) -> Quarantined | None:
        """Send a reserved extent back to the allocator; at once if nothing can touch it any more.

        `recorded`: its node may hold it in its index, and must forget it first.
        """
        segment = self.state.segments.get(copy.segment)
        if segment is None or segment.gone:
            return None
        segment.let_go(aligned(length))
        return self.quarantine(segment, copy.offset, length, write_id, not_before=not_before, recorded=recorded)

    def quarantine(
        self, segment: Segment, offset: int, length: int, write_id: int, *, not_before: int, recorded: bool
    ) -> Quarantined | None:
        """Keep an extent that is in no account until it is safe to reuse.

        One that is not recorded rests because a write to it may go on: then its node is asked whether one does.
        """
        is_due = not_before <= self.state.now
        if is_due and not recorded:
            segment.allocator.free(offset, length)
            self.state.space_freed = True
            return None
        hold = (_FORGETTING if is_due else _LEASED) if recorded else Hold.RESTING
        entry = Quarantined(segment, offset, length, write_id, not_before, hold)
        segment.begin_quarantine(entry)
        if not is_due:
            self.state.at(not_before, lambda: self._on(entry, Event.TIME))
        if recorded:
            segment.node.to_forget.append(entry)
        return entry

    def forgotten(self, entry: Quarantined) -> None:
        """The node no longer holds the extent, and nobody writes there by shared memory."""
        if entry.waiting is not None:
            self.wait_no_more(entry)
        if entry.hold is _LEASED and entry.not_before <= self.state.now:  # its timer comes later in this step
            self._on(entry, Event.TIME)
        self._on(entry, _ACKNOWLEDGED)

    def await_forgetting(self, entries: Iterable[Quarantined], then: Callable[[], None]) -> None:
        """Call `then` once live nodes have forgotten these. Suspect nodes are not waited for."""
        pending = PendingForgets(then)
        for entry in entries:
            if entry.segment.live:
                entry.waiting = pending
                pending.remaining += 1
        pending.one_less()

    def wait_no_more(self, entry: Quarantined) -> None:
        """It is forgotten, or nobody can say when it will be."""
        pending, entry.waiting = entry.waiting, None
        if pending is not None:
            pending.one_less()

    def _on(self, entry: Quarantined, event: Event) -> None:
        segment = entry.segment
        if segment.gone or segment.quarantine.get(entry.offset) is not entry:
            return
        hold = TRANSITIONS[entry.hold][event]
        if hold is _FREE:
            segment.end_quarantine(entry)
            self.state.space_freed = True
        elif hold is _WATCHED:
            segment.node.to_forget.append(entry)
        entry.hold = hold

    # ---- messages to nodes -----------------------------------------------------------------------

    def flush_forgets(self) -> None:
        """One Forget a node and step unless it gets too long, and others for what may still be written: nodes may take
        long to answer those.

        A node without a stream is told when it attaches again.
        """
        for node in self.state.nodes.values():
            if node.stream is None or node.phase is Phase.ATTACHING or not (node.to_forget or node.strays):
                continue
            strays, node.strays = node.strays, []
            batch = [entry for entry in node.to_forget if entry.hold in UNACKNOWLEDGED and not entry.segment.gone]
            node.to_forget = []
            copies = [entry for entry in batch if entry.hold is not _WATCHED]
            for start in range(0, max(len(copies), len(strays)), EXTENTS_PER_FORGET):
                end = start + EXTENTS_PER_FORGET
                self._tell(node, copies[start:end], strays[start:end], [])
            watched = [entry for entry in batch if entry.hold is _WATCHED]
            for start in range(0, len(watched), WATCHED_PER_FORGET):
                part = watched[start : start + WATCHED_PER_FORGET]
                self._tell(node, part, [], [entry.length for entry in part])

    def _tell(
        self, node: Node, entries: list[Quarantined], strays: list[tuple[int, int, int]], lengths: list[int]
    ) -> None:
        assert node.stream is not None
        command_id = self.state.number()
        self.told[command_id] = entries
        node.outstanding[command_id] = self
        extents = [(entry.segment.number, entry.offset, entry.write_id) for entry in entries]
        self.state.effects.append(Forget(node.stream, self.state.epoch, command_id, strays + extents, lengths))

    def done(self, command_id: int) -> None:
        for entry in self.told.pop(command_id):
            self.forgotten(entry)

    def refused(self, command_id: int, reason: str, *, source_is_corrupt: bool) -> None:
        self.cut_off(command_id)

    def cut_off(self, command_id: int) -> None:
        """The node is told again when it attaches: what is not forgotten is still in quarantine."""
        del self.told[command_id]
