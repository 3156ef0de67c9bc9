"""How a put starts: its extents are reserved, or it waits for room. And how it ends without a PutEnd: abort, expiry.

Keeps invariants 5 (retries) and 12 (bounded waits). The rest of its life is in `ends`.
"""

from collections import deque
from collections.abc import Sequence
from itertools import chain

from services.master.core import messages as m
from services.master.core.allocator import aligned
from services.master.core.arguments import check_batch, check_start
from services.master.core.calls import Calls, Overloaded
from services.master.core.messages import Pin, Result
from services.master.core.objects import Near, Terms
from services.master.core.pending import PendingStart, Write
from services.master.core.places import make_places
from services.master.core.placing import Placing
from services.master.core.precedence import stays
from services.master.core.room import Room
from services.master.core.shortage import Shortage, shortage
from services.master.core.tables import State
from services.master.core.writes import Writes

WAITING_POLL_MS = 20  # between two looks of waiting puts whether leases have ended
_OK, _EXISTS, _HARD = Result.OK, Result.EXISTS, Pin.HARD  # members of an enum are slow to look up


class Puts:
    def __init__(self, state: State, calls: Calls, placing: Placing, room: Room, writes: Writes) -> None:
        self.state = state
        self.calls = calls
        self.placing = placing
        self.room = room
        self.writes = writes
        self.waiting: deque[PendingStart] = deque()  # first come, first served

    # ---- start -----------------------------------------------------------------------------------

    def start(self, command: m.PutStart) -> None:
        config = self.state.config
        check_start(config, command)
        if self.calls.is_new(command.request_id, m.PutStarted):
            self._check_waiting(command.client)
            self.writes.grants.take(command.client, len(command.keys))
        if not self.calls.begin(command.call, command.request_id, m.PutStarted):
            return
        wait_ms = min(command.wait_ms, config.wait_ms_max)
        now = self.state.now
        copies = command.copies or config.copies
        terms = Terms(copies, command.ttl_ms, command.pin, command.client, command.replace)
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
        """Decide the keys that can be decided now, in order. True once none is left."""
        command = pending.command
        near = Near(command.host_id, command.zone)
        room = self.placing.pin_room() if command.pin == _HARD else None
        fits: dict[int, bool] = {}  # by size
        while pending.next < len(command.keys):
            size = pending.size
            if size not in fits:
                fits[size] = self.placing.could_ever_fit(size)
            if stays(self.state, command.keys[pending.next], pending.terms):
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
                self.writes.open(pending, size, objects)
        self._started(pending)
        return True

    def _run_length(self, pending: PendingStart) -> int:
        """How many of the next objects are new, of one size, and together no larger than a slice."""
        keys, sizes = pending.command.keys, pending.command.sizes
        first, size = pending.next, pending.size
        stop = min(len(keys), first + max(1, self.state.config.slice_bytes // aligned(size)))
        if sizes[first:stop].count(size) == stop - first and self.state.objects.keys().isdisjoint(keys[first:stop]):
            return stop - first  # the usual case, at a tenth of the time
        following, state, terms = range(first + 1, stop), self.state, pending.terms
        return next((i for i in following if sizes[i] != size or stays(state, keys[i], terms)), stop) - first

    def _started(self, pending: PendingStart) -> None:
        """Answer. The time to write starts now; the client counts from before it asked, so its wait is added."""
        ttl_ms = self.state.config.write_ttl_ms
        self.writes.grants.give_back(pending.command.client, pending.write_ids.count(0))
        for index, write_id in enumerate(pending.write_ids if pending.waited else ()):
            # A node may have gone while the put waited: the rest of the write must still hold the whole object.
            if write_id and not self._prune(self.state.writes[write_id]):
                self.writes.drop(write_id)
                pending.write_ids[index], pending.results[index] = 0, Result.NO_SPACE
        opened = [write_id for write_id in pending.write_ids if write_id]
        if opened:
            self.state.at(self.state.now + ttl_ms, lambda: self._expire(opened))
        writes = [self.state.writes.get(write_id) for write_id in pending.write_ids]
        slices = [write.slices if write else () for write in writes]
        parts = list(chain.from_iterable(slices))
        places = make_places(list(map(len, slices)), parts, [part.copies for part in parts], self.state.segments)
        refused = pending.results.count(Result.NO_SPACE)
        self.state.counters.refused_puts += refused
        why = shortage(self.state) if refused else Shortage()
        ttl_ms += self.state.now - pending.asked_at
        answer = m.PutStarted(pending.results, pending.write_ids, places, ttl_ms, why.reason, why.remedy)
        self.calls.finish(pending.command.request_id, answer)

    def _prune(self, write: Write) -> bool:
        for part in write.slices:
            self.writes.keep_written(write, part, [False] * len(part.copies))
        return all(part.copies for part in write.slices)

    def retry(self) -> None:
        """Let waiting puts go on, first come, first served; those whose deadline has come get what there is."""
        expired = [pending for pending in self.waiting if pending.deadline <= self.state.now]
        wanted = 0
        for pending in expired:
            self.waiting.remove(pending)
            while not self._advance(pending, degraded=True):
                wanted += pending.size  # for the next one, which may not wait either
                pending.decide(Result.NO_SPACE)
        while self.waiting and self._advance(self.waiting[0]):
            self.waiting.popleft()
        if wanted := self.waiting[0].size if self.waiting else min(wanted, self.state.config.slice_bytes):
            self.room.make_room(wanted)

    def next_poll_ms(self) -> int | None:
        if not self.waiting:
            return None
        return min(self.state.now + WAITING_POLL_MS, min(pending.deadline for pending in self.waiting))

    # ---- abort and expiry ------------------------------------------------------------------------

    def abort(self, command: m.PutAbort) -> None:
        check_batch(self.state.config, len(command.write_ids))
        if not self.calls.begin(command.call, command.request_id, m.PutAborted):
            return
        results = [Result.OK if self.writes.drop(write_id) else Result.UNKNOWN_WRITE for write_id in command.write_ids]
        self.calls.finish(command.request_id, m.PutAborted(results))

    def _expire(self, write_ids: Sequence[int]) -> None:
        self.state.counters.expired_writes += sum(self.writes.drop(write_id) for write_id in write_ids)
