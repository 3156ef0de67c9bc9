"""How a put ends: its holders record it, and once all have answered it can be read.

Keeps invariants 1 and 2 (readable only once every slice is recorded by a holder) and 5 (retries).
"""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import NamedTuple

from services.master.core import messages as m
from services.master.core.arguments import check_end
from services.master.core.calls import Calls
from services.master.core.catalogue import Catalogue
from services.master.core.cluster import Node
from services.master.core.extents import Extents
from services.master.core.messages import HeldCopy, Result
from services.master.core.objects import Copy, Object, Slice, held
from services.master.core.pending import PendingEnd, Write
from services.master.core.precedence import may_show, renumber
from services.master.core.repair import Repair
from services.master.core.runs import link
from services.master.core.tables import State
from services.master.core.writes import Writes

_OK, _EXISTS = Result.OK, Result.EXISTS  # members of an enum are slow to look up


class Recording(NamedTuple):
    node: Node
    writes: list[Write]  # that it was told to record


class _Batch:
    """What one node is told to record for a call."""

    __slots__ = ("copies", "node", "writes")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.writes: list[Write] = []
        self.copies: list[HeldCopy] = []


class Ends:
    outlives_silence = False

    def __init__(
        self, state: State, calls: Calls, extents: Extents, catalogue: Catalogue, writes: Writes, repair: Repair
    ) -> None:
        self.state = state
        self.calls = calls
        self.extents = extents
        self.catalogue = catalogue
        self.writes = writes
        self.repair = repair
        self.recording: dict[int, Recording] = {}  # by the command's number

    def end(self, command: m.PutEnd) -> None:
        check_end(self.state.config, self.state.writes, command)
        if not self.calls.begin(command.call, command.request_id, m.PutEnded):
            return
        failed = {(index, part, copy) for index, part, copy in command.failed}
        wait_ms = min(command.wait_ms, self.state.config.wait_ms_max)
        pending = PendingEnd(command.request_id, len(command.write_ids), self.state.now + wait_ms)
        batches: dict[int, _Batch] = {}  # by segment
        starts = [0, *accumulate(command.slice_counts)]
        live = {number for number, segment in self.state.segments.items() if segment.live}
        for index, write_id in enumerate(command.write_ids):
            write = self.writes.find_open(write_id)
            if write is None:
                self._resolve(pending, index, Result.UNKNOWN_WRITE, 0)
                continue
            write.end, write.end_index = pending, index
            if write.terms.replaces:
                renumber(self.state, write)
            for number, part in enumerate(write.slices):
                part.checksum = command.checksums[starts[index] + number]
                if failed or not live.issuperset([copy[0] for copy in part.copies]):
                    bad = [(index, number, copy) in failed for copy in range(len(part.copies))]
                    self.writes.keep_written(write, part, bad)
            self._record(write, batches)
        for batch in dict.fromkeys(batches.values()):
            self._send(batch)
        if not command.write_ids:
            self.calls.finish(command.request_id, m.PutEnded([], []))

    def _record(self, write: Write, batches: dict[int, _Batch]) -> None:
        slices, terms = write.slices, write.terms
        if not may_show(self.state, write) or not _fewest(slices):
            self._complete(write)  # nothing to record: another was first, or it is lost
            return
        expires_at = self.state.now + terms.ttl_ms if terms.ttl_ms else 0
        obj = write.obj = Object(
            write.key, write.write_id, write.size, write.depth, slices, 0, terms.wanted, expires_at, terms.pin
        )
        for number, part in enumerate(slices):
            for copy in part.copies:
                batch = batches.get(copy[0])
                if batch is None:
                    node = self.state.segments[copy[0]].node
                    batch = _Batch(node)
                    batches.update((segment.number, batch) for segment in node.segments)
                if not batch.writes or batch.writes[-1] is not write:
                    batch.writes.append(write)
                    write.awaiting += 1
                batch.copies.append(held(obj, number, part, copy))

    def _send(self, batch: _Batch) -> None:
        node, command_id = batch.node, self.state.number()
        assert node.stream is not None
        self.recording[command_id] = Recording(node, batch.writes)
        node.outstanding[command_id] = self
        self.state.effects.append(m.Record(node.stream, self.state.epoch, command_id, batch.copies))
        self._time_out_later(command_id)

    # ---- what the nodes say of it ----------------------------------------------------------------

    def done(self, command_id: int) -> None:
        """A node has recorded. The leaves of a chain before its root: in this order they are evicted, too."""
        for write in reversed(self.recording.pop(command_id).writes):
            self._acknowledged(write)

    def refused(self, command_id: int, reason: str, *, source_is_corrupt: bool) -> None:
        self.cut_off(command_id)

    def cut_off(self, command_id: int) -> None:
        """The node is silent or away, refused, or takes too long: its copies do not count."""
        node, writes = self.recording.pop(command_id)
        for write in writes:
            for part in write.slices:
                for copy in [copy for copy in part.copies if self._is_on(copy, node)]:
                    part.copies.remove(copy)
                    self.extents.release(copy, part.length, write.write_id, not_before=self.state.now, recorded=True)
            self._acknowledged(write)

    def _time_out_later(self, command_id: int) -> None:
        self.state.at(self.state.now + self.state.config.record_timeout_ms, lambda: self._time_out(command_id))

    def _time_out(self, command_id: int) -> None:
        recording = self.recording.get(command_id)
        if recording is not None:
            del recording.node.outstanding[command_id]
            self.cut_off(command_id)

    def given_up(self, node: Node) -> None:
        """What the node had recorded is lost, while other nodes are still recording."""
        for write in chain.from_iterable(recording.writes for recording in self.recording.values()):
            for part in write.slices:
                part.copies = [copy for copy in part.copies if not self._is_on(copy, node)]

    def _is_on(self, copy: Copy, node: Node) -> bool:
        segment = self.state.segments.get(copy.segment)
        return segment is None or segment.node is node

    def _acknowledged(self, write: Write) -> None:
        write.awaiting -= 1
        assert write.awaiting >= 0
        if not write.awaiting:
            self._complete(write)

    def _complete(self, write: Write) -> None:
        """Every holder has answered, or none is left: make the object readable, or release its extents.

        Holders that fell silent after recording it are not enough: the client puts it again, elsewhere.
        """
        pending, index = write.end, write.end_index
        assert pending is not None
        if self.state.at_hand(write.slices) and may_show(self.state, write):
            self._become_object(write, pending, index)
            return
        for part in write.slices:
            for copy in part.copies:
                self.extents.release(copy, part.length, write.write_id, not_before=self.state.now, recorded=True)
        self.writes.close(write)
        gives_way = self.state.has(write.key) and not may_show(self.state, write)
        self._resolve(pending, index, _EXISTS if gives_way else Result.LOST, 0)

    def _become_object(self, write: Write, pending: PendingEnd, index: int) -> None:
        """The answer to a put that replaces waits until what was there is forgotten."""
        state, replaces, obj = self.state, write.terms.replaces, write.obj
        assert obj is not None
        state.counters.put_objects += 1
        state.counters.put_bytes += obj.size
        pending.objects[index] = obj
        before = self.catalogue.enter(obj)
        if replaces:
            state.replaced[obj.key] = obj.write_id
            state.absences.note_removed((obj.key,), obj.write_id - 1)
        self.writes.close(write)
        copies = _fewest(obj.slices)
        if state.draining or (replaces and before):
            self.repair.want(obj)  # the node may be draining since the put began
        if replaces and before:
            self.extents.await_forgetting(before, lambda: self._stored(obj, copies, pending, index))
        else:
            self._stored(obj, copies, pending, index)

    def _stored(self, obj: Object, copies: int, pending: PendingEnd, index: int) -> None:
        """Answer; if copies are missing, once they are made, or when that takes too long."""
        if copies >= obj.wanted:
            self._resolve(pending, index, _OK, copies)
            return
        self.state.counters.degraded_puts += 1

        def answer() -> None:  # the object can be read meanwhile; it may have gone, or lost another copy
            self._resolve(pending, index, _OK, max(copies, _fewest(obj.slices)))

        if pending.until > self.state.now and self.state.objects.get(obj.key) is obj:
            self.repair.promise(obj, pending.until, answer)
        else:
            answer()
            self.repair.want(obj)

    def _resolve(self, pending: PendingEnd, index: int, result: Result, copies: int) -> None:
        pending.results[index] = result
        pending.copies[index] = copies
        pending.remaining -= 1
        if not pending.remaining:
            objects = self.state.objects
            link([obj for obj in pending.objects if obj is not None and objects.get(obj.key) is obj])
            self.calls.finish(pending.request_id, m.PutEnded(pending.results, pending.copies))


def _fewest(slices: Sequence[Slice]) -> int:
    """Copies of the slice with the fewest."""
    least = len(slices[0].copies)
    for part in slices:
        if len(part.copies) < least:
            least = len(part.copies)
    return least
