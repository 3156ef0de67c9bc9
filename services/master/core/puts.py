"""The life of a put: start (places reserved, or waiting for room), end (holders record, then it is readable), abort,
expiry.

Keeps invariants 1 and 2 (readable only once every slice is recorded by a holder), 5 (retries) and 12 (bounded waits).
"""

from collections import deque
from collections.abc import Sequence
from itertools import accumulate, chain

from services.master.core import messages as m
from services.master.core.allocator import aligned
from services.master.core.calls import Calls, Overloaded
from services.master.core.catalogue import Catalogue
from services.master.core.cluster import Node
from services.master.core.extents import Extents
from services.master.core.grants import Grants
from services.master.core.messages import HeldCopy, Pin, Result
from services.master.core.objects import Copy, Near, Object, Slice, Terms
from services.master.core.pending import PendingEnd, PendingStart, Write
from services.master.core.placing import Placing, make_places
from services.master.core.put_checks import check_end, check_start
from services.master.core.repair import Repair
from services.master.core.room import Room
from services.master.core.runs import link
from services.master.core.shortage import Shortage, shortage
from services.master.core.tables import State

WAITING_POLL_MS = 20  # how often a put that waits for room looks whether leases have ended
_OK, _EXISTS, _HARD = Result.OK, Result.EXISTS, Pin.HARD  # members of an enum are slow to look up


class Puts:
    def __init__(
        self,
        state: State,
        calls: Calls,
        extents: Extents,
        catalogue: Catalogue,
        placing: Placing,
        room: Room,
        repair: Repair,
    ) -> None:
        self.state = state
        self.calls = calls
        self.extents = extents
        self.catalogue = catalogue
        self.placing = placing
        self.room = room
        self.repair = repair
        self.grants = Grants(state.config)
        self.waiting: deque[PendingStart] = deque()  # first come, first served

    # ---- start -----------------------------------------------------------------------------------

    def start(self, command: m.PutStart) -> None:
        config = self.state.config
        check_start(self.state, self.calls, command)
        if self.calls.is_new(command.request_id, m.PutStarted):
            self._check_waiting(command.client)
            self.grants.take(command.client, len(command.keys))
        if not self.calls.begin(command.call, command.request_id, m.PutStarted):
            return
        wait_ms = min(command.wait_ms, config.wait_ms_max)
        now = self.state.now
        terms = Terms(command.copies or config.copies, command.ttl_ms, command.pin, command.client)
        pending = PendingStart(command, terms, now, now + wait_ms)
        if self.waiting or not self._advance(pending):
            pending.waited = True
            self.waiting.append(pending)
            self.retry()  # a deadline of now is answered now

    def _check_waiting(self, client: str) -> None:
        config = self.state.config
        if len(self.waiting) >= config.waiting_max:
            rests = self.state.rest.said(self.state.now)
            raise Overloaded(f"too many puts wait for room{rests and ': '}{rests}")
        if sum(pending.command.client == client for pending in self.waiting) >= config.waiting_per_client_max:
            raise Overloaded(f"this client has {config.waiting_per_client_max} puts that wait for room")

    def _advance(self, pending: PendingStart, *, degraded: bool = False) -> bool:
        """Decide the keys that can be decided now, in order; True when none is left."""
        command = pending.command
        near = Near(command.host_id, command.zone)
        room = self.placing.pin_room() if command.pin == _HARD else None
        fits: dict[int, bool] = {}  # by size
        while pending.next < len(command.keys):
            size = pending.size
            if size not in fits:
                fits[size] = self.placing.could_ever_fit(size)
            if self._exists(command.keys[pending.next]):
                self.state.objects[command.keys[pending.next]].used = self.state.traffic.use()
                pending.decide(_EXISTS)
            elif not fits[size]:
                pending.decide(Result.TOO_LARGE)
            elif room is not None and not self.placing.could_pin(size, pending.terms.wanted, room):
                self.state.counters.refused_pins += 1
                pending.decide(Result.PIN_REFUSED)
            else:
                run = self._run_length(pending)
                objects = self.placing.place_run(size, run, pending.terms.wanted, near, degraded=degraded, room=room)
                if not objects:
                    return False
                self._open(pending, size, objects)
        self._started(pending)
        return True

    def _run_length(self, pending: PendingStart) -> int:
        """How many of the next objects are of one size, new, and together no larger than a slice."""
        keys, sizes = pending.command.keys, pending.command.sizes
        first, size = pending.next, pending.size
        stop = min(len(keys), first + max(1, self.state.config.slice_bytes // aligned(size)))
        if sizes[first:stop].count(size) == stop - first and self.state.objects.keys().isdisjoint(keys[first:stop]):
            return stop - first  # as for most, at a tenth of the time
        following = range(first + 1, stop)
        return next((i for i in following if sizes[i] != size or self._exists(keys[i])), stop) - first

    def _exists(self, key: bytes) -> bool:
        """Whether the key can be read now: what lies on suspect nodes alone is put again rather than waited for."""
        obj = self.state.objects.get(key)
        return obj is not None and self.state.readable(obj)

    def _open(self, pending: PendingStart, size: int, objects: Sequence[list[Slice]]) -> None:
        """Writes for the next keys, one to each object's slices."""
        state, keys, depths, terms = self.state, pending.command.keys, pending.command.depths, pending.terms
        for index, slices in enumerate(objects, pending.next):
            state.next_write_id += 1
            write_id, key = state.next_write_id, keys[index]
            write = Write(write_id, key, size, depths[index] if depths else 0, slices, terms)
            state.writes[write_id] = write
            state.writing[key] = state.writing.get(key, 0) + 1
            if terms.pin == _HARD:
                state.pinned_writes[write_id] = write
            pending.write_ids[index] = write_id  # and the result is OK until something else is decided
        pending.next += len(objects)

    def _started(self, pending: PendingStart) -> None:
        """Answer. The time to write runs from here. The client counts from before it asked: what it waited is added."""
        ttl_ms = self.state.config.write_ttl_ms
        self.grants.give_back(pending.command.client, pending.write_ids.count(0))
        for index, write_id in enumerate(pending.write_ids if pending.waited else ()):
            # A node may have gone while the put waited: what is left of the write must still hold the whole object.
            if write_id and not self._prune(self.state.writes[write_id]):
                self._drop(write_id)
                pending.write_ids[index], pending.results[index] = 0, Result.NO_SPACE
        opened = [write_id for write_id in pending.write_ids if write_id]
        if opened:
            self.state.at(self.state.now + ttl_ms, lambda: self._expire(opened))
        writes = [self.state.writes.get(write_id) for write_id in pending.write_ids]
        slices = [write.slices if write else () for write in writes]
        parts = list(chain.from_iterable(slices))
        places = make_places(list(map(len, slices)), parts, [part.copies for part in parts])
        refused = pending.results.count(Result.NO_SPACE)
        self.state.counters.refused_puts += refused
        why = shortage(self.state) if refused else Shortage()
        ttl_ms += self.state.now - pending.asked_at
        answer = m.PutStarted(pending.results, pending.write_ids, places, ttl_ms, why.reason, why.remedy)
        self.calls.finish(pending.command.request_id, answer)

    def _prune(self, write: Write) -> bool:
        for part in write.slices:
            self._keep_written(write, part, [False] * len(part.copies))
        return all(part.copies for part in write.slices)

    def retry(self) -> None:
        """Let waiting puts go on, first come first served; answer those whose deadline has come with what there is."""
        expired = [pending for pending in self.waiting if pending.deadline <= self.state.now]
        wanted = 0
        for pending in expired:
            self.waiting.remove(pending)
            while not self._advance(pending, degraded=True):
                wanted += pending.size  # by the next one, which may not wait either
                pending.decide(Result.NO_SPACE)
        while self.waiting and self._advance(self.waiting[0]):
            self.waiting.popleft()
        if wanted := self.waiting[0].size if self.waiting else min(wanted, self.state.config.slice_bytes):
            self.room.make_room(wanted)

    def next_poll_ms(self) -> int | None:
        if not self.waiting:
            return None
        return min(self.state.now + WAITING_POLL_MS, min(pending.deadline for pending in self.waiting))

    # ---- end -------------------------------------------------------------------------------------

    def end(self, command: m.PutEnd) -> None:
        check_end(self.state, self.calls, command)
        if not self.calls.begin(command.call, command.request_id, m.PutEnded):
            return
        failed = {(index, part, copy) for index, part, copy in command.failed}
        wait_ms = min(command.wait_ms, self.state.config.wait_ms_max)
        pending = PendingEnd(command.request_id, len(command.write_ids), self.state.now + wait_ms)
        records: dict[Node, tuple[list[Write], list[HeldCopy]]] = {}
        starts = [0, *accumulate(command.slice_counts)]
        live = {number for number, segment in self.state.segments.items() if segment.live}
        for index, write_id in enumerate(command.write_ids):
            write = self._open_write(write_id)
            if write is None:
                self._resolve(pending, index, Result.UNKNOWN_WRITE, 0)
                continue
            write.end, write.end_index, write.ended_at = pending, index, self.state.now
            for number, part in enumerate(write.slices):
                part.checksum = command.checksums[starts[index] + number]
                if failed or not live.issuperset([copy[0] for copy in part.copies]):
                    self._keep_written(write, part, [(index, number, c) in failed for c in range(len(part.copies))])
            self._record(write, records)
        for node, (writes, copies) in records.items():
            assert node.stream is not None
            command_id = self.state.number()
            node.recording[command_id] = writes
            self.state.effects.append(m.Record(node.stream, command_id, copies))
            self._give_up_later(node, command_id)
        if not command.write_ids:
            self.calls.finish(command.request_id, m.PutEnded([], []))

    def _open_write(self, write_id: int) -> Write | None:
        """The write, if it was started and neither ended, aborted nor expired."""
        write = self.state.writes.get(write_id)
        return write if write is not None and write.end is None else None

    def _keep_written(self, write: Write, part: Slice, failed: list[bool]) -> None:
        """Keep of a slice the copies that were written and can be recorded; the rest is released."""
        kept: list[Copy] = []
        for copy, bad in zip(part.copies, failed, strict=True):
            segment = self.state.segments.get(copy.segment)
            if segment is not None and segment.live and not bad:
                kept.append(copy)
                continue
            if bad and segment is not None:
                self.state.unreached.append(segment.number)
            # What failed for the client may still land; what a node cannot record was written, and is still.
            not_before = self.state.now + (self.state.config.late_write_ms if bad else 0)
            self.extents.release(copy, part.length, write.write_id, not_before=not_before, recorded=False)
        part.copies = kept

    def _record(self, write: Write, records: dict[Node, tuple[list[Write], list[HeldCopy]]]) -> None:
        slices, terms, segments = write.slices, write.terms, self.state.segments
        if self._exists(write.key) or not _fewest(slices):
            self._complete(write)  # nothing to record: another was first, or it is lost
            return
        for number, part in enumerate(slices):
            for segment, offset in part.copies:
                node = segments[segment].node
                told = records.get(node)
                if told is None:
                    told = records[node] = ([], [])
                writes, copies = told
                if not writes or writes[-1] is not write:
                    writes.append(write)
                    write.awaiting += 1
                copies.append(
                    HeldCopy(
                        write.key, write.write_id, write.size, len(slices), number,
                        segment, offset, part.length, part.checksum, write.depth, terms.wanted,
                        terms.ttl_ms, terms.pin,
                    )
                )  # fmt: skip

    def recorded(self, node: Node, command_id: int) -> None:
        """A node acknowledged a Record. Leaves of a chain before its root: in this order they leave again."""
        for write in reversed(node.recording.pop(command_id, ())):
            self._acknowledged(write)

    def _give_up_later(self, node: Node, command_id: int) -> None:
        due = self.state.now + self.state.config.record_timeout_ms
        self.state.at(due, lambda: self.not_recorded(node, [command_id]))

    def not_recorded(self, node: Node, command_ids: Sequence[int]) -> None:
        """The node fell silent or away, or refused: what it has not acknowledged is not counted on."""
        for command_id in command_ids:
            for write in node.recording.pop(command_id, ()):
                for part in write.slices:
                    for copy in [c for c in part.copies if self._is_on(c, node)]:
                        part.copies.remove(copy)
                        self.extents.release(
                            copy, part.length, write.write_id, not_before=self.state.now, recorded=True
                        )
                self._acknowledged(write)

    def given_up(self, node: Node) -> None:
        """What the node had recorded is lost with it, while others are still recording."""
        recording = [writes for other in self.state.nodes.values() for writes in other.recording.values()]
        for write in chain.from_iterable(recording):
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
        """Every holder has answered, or none is left: make the object readable, or give its extents back.

        Holders that fell silent after they had recorded it are not enough: the client puts it again, elsewhere.
        """
        pending, index = write.end, write.end_index
        assert pending is not None
        if self.state.at_hand(write.slices) and not self._exists(write.key):
            obj = pending.objects[index] = self._become_object(write)
            self._close(write)
            if self.state.draining:
                self.repair.want(obj)  # the node may be to go since the put began
            copies = _fewest(write.slices)
            if copies >= write.terms.wanted:
                self._resolve(pending, index, _OK, copies)
            else:
                self.state.counters.degraded_puts += 1
                self._mend(obj, pending, index)
            return
        for part in write.slices:
            for copy in part.copies:
                self.extents.release(copy, part.length, write.write_id, not_before=self.state.now, recorded=True)
        self._close(write)
        self._resolve(pending, index, _EXISTS if self._exists(write.key) else Result.LOST, 0)

    def _mend(self, obj: Object, pending: PendingEnd, index: int) -> None:
        """Have the copies made that are missing; the answer waits for them as long as it may."""
        copies = _fewest(obj.slices)

        def answer() -> None:  # the object can be read meanwhile; it may be gone, or have lost a copy more
            self._resolve(pending, index, _OK, max(copies, _fewest(obj.slices)))

        if pending.until > self.state.now:
            self.repair.promise(obj, pending.until, answer)
        else:
            answer()
            self.repair.want(obj)

    def _become_object(self, write: Write) -> Object:
        key = write.key
        for table in (self.state.objects, self.state.partial):
            if key in table:
                self.catalogue.discard(table[key])
        wanted, ttl_ms, pin, _ = write.terms
        expires_at = write.ended_at + ttl_ms if ttl_ms else 0
        obj = Object(key, write.write_id, write.size, write.depth, write.slices, 0, wanted, expires_at, pin)
        self.state.counters.put_objects += 1
        self.state.counters.put_bytes += obj.size
        self.catalogue.enter(obj)
        return obj

    def _close(self, write: Write) -> None:
        state, key = self.state, write.key
        del state.writes[write.write_id]
        if write.terms.pin == _HARD:
            del state.pinned_writes[write.write_id]
        self.grants.give_back(write.terms.client, 1)
        left = state.writing.pop(key) - 1
        if left:
            state.writing[key] = left
        state.ended_keys.append(key)

    def _resolve(self, pending: PendingEnd, index: int, result: Result, copies: int) -> None:
        pending.results[index] = result
        pending.copies[index] = copies
        pending.remaining -= 1
        if not pending.remaining:
            objects = self.state.objects
            link([obj for obj in pending.objects if obj is not None and objects.get(obj.key) is obj])
            self.calls.finish(pending.request_id, m.PutEnded(pending.results, pending.copies))

    # ---- abort and expiry ------------------------------------------------------------------------

    def abort(self, command: m.PutAbort) -> None:
        self.calls.check_batch(len(command.write_ids))
        if not self.calls.begin(command.call, command.request_id, m.PutAborted):
            return
        results = [Result.OK if self._drop(write_id) else Result.UNKNOWN_WRITE for write_id in command.write_ids]
        self.calls.finish(command.request_id, m.PutAborted(results))

    def _expire(self, write_ids: Sequence[int]) -> None:
        self.state.counters.expired_writes += sum(self._drop(write_id) for write_id in write_ids)

    def _drop(self, write_id: int) -> bool:
        """Give up an open write: its transfers may still be under way, so its extents rest."""
        write = self._open_write(write_id)
        if write is None:
            return False
        not_before = self.state.now + self.state.config.late_write_ms
        for part in write.slices:
            for copy in part.copies:
                self.extents.release(copy, part.length, write_id, not_before=not_before, recorded=False)
        self._close(write)
        return True


def _fewest(slices: Sequence[Slice]) -> int:
    """Copies of the slice that has the fewest."""
    least = len(slices[0].copies)
    for part in slices:
        if len(part.copies) < least:
            least = len(part.copies)
    return least
