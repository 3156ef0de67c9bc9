"""Lookup, Release, Match, Exists, List: what clients ask of objects that are there.

Keeps invariants 1 (only readable objects are offered), 9 (no copy on a node that is not live) and 12 (bounded waits).
Lookup prolongs life and gives a lease; Match and Exists prolong nothing, so that a client that only probes cannot keep
anything alive. A Match may hold what it found, for a moment, for the Lookup that follows.
"""

from collections.abc import Sequence
from itertools import chain, repeat

from services.master.core import messages as m
from services.master.core.arguments import Invalid, check_batch, check_keys
from services.master.core.calls import Calls
from services.master.core.leases import Leases
from services.master.core.messages import Result
from services.master.core.objects import Copy, Object, Slice
from services.master.core.packed import PackedKeys
from services.master.core.pending import PendingMatch
from services.master.core.places import make_places
from services.master.core.runs import leading
from services.master.core.tables import State

_OK, _MISS = Result.OK, Result.MISS  # members of an enum are slow to look up
LIST_LIMIT_DEFAULT = 1_000
LIST_LIMIT_MAX = 10_000


class Reads:
    def __init__(self, state: State, calls: Calls) -> None:
        self.state = state
        self.calls = calls
        self.leases = Leases(state)
        self._matching: dict[bytes, list[PendingMatch]] = {}  # by the key waited for
        self._waiting = 0
        self._absent = Object(b"", write_id=0, size=0, depth=0, slices=[], lease_until=0, wanted=0)
        """Stands for what is not there, so that all columns are read alike. Only its size and slices mean anything."""

    def lookup(self, command: m.Lookup) -> None:
        """One loop a column: a call with thousands of keys spends its time here."""
        check_keys(self.state.config, command.keys)
        state, absent = self.state, self._absent
        objects = list(map(state.objects.get, command.keys, repeat(absent)))
        if state.overdue or not all(segment.live for segment in state.segments.values()):
            objects = [obj if state.readable(obj) else absent for obj in objects]
        sizes = [obj.size for obj in objects]
        missing = sizes.count(0)
        results = [_OK if size else _MISS for size in sizes] if missing else [_OK] * len(sizes)
        used = state.traffic.use(len(sizes) - missing)
        for obj in objects:
            obj.used = used
        found = [obj for obj in objects if obj is not absent] if missing else objects
        lease = self.leases.give(found) if found else 0
        self._count("lookup", len(sizes), len(sizes) - missing, sum(sizes))
        slices = [obj.slices for obj in objects]
        parts = list(chain.from_iterable(slices))
        places = make_places(list(map(len, slices)), parts, self._offered(command, parts), state.segments)
        promised_ms = state.config.lease_ms - 1  # `now` is rounded down, so the lease may end that much earlier
        self.calls.reply(command.call, m.Found(results, sizes, places, promised_ms, lease))

    def release(self, command: m.Release) -> None:
        check_batch(self.state.config, len(command.leases))
        self.leases.give_back(command.leases)
        self.calls.reply(command.call, m.Released())

    def _offered(self, command: m.Lookup, parts: Sequence[Slice]) -> list[list[Copy]]:
        """For each slice its copies on live nodes: first those on the caller's host, then in its zone, then others."""
        host_id, zone = command.host_id, command.zone
        far = {
            number: 2 * (segment.node.host_id != host_id) + (not zone or segment.node.zone != zone)
            for number, segment in self.state.segments.items()
            if segment.live
        }
        every = [part.copies for part in parts]
        if set(map(len, every)) == {1}:
            return every  # nothing to choose: what is readable has a copy on a live node

        def nearest_first(copies: list[Copy]) -> list[Copy]:
            if len(copies) == 2:  # the usual case; sorting two takes longer
                one, two = copies
                if one[0] in far and two[0] in far:
                    return copies if far[one[0]] <= far[two[0]] else [two, one]
            return sorted((copy for copy in copies if copy[0] in far), key=lambda copy: far[copy[0]])

        return list(map(nearest_first, every))

    # ---- match -----------------------------------------------------------------------------------

    def match(self, command: m.Match) -> None:
        width, keys = check_keys(self.state.config, command.keys), command.keys
        if width and not isinstance(keys, PackedKeys):
            keys = PackedKeys(b"".join(keys), width)
        matched, size = self._matched(keys, 0)
        wait_ms = min(command.wait_ms, self.state.config.wait_ms_max)
        pending = PendingMatch(command.call, command.hold_ms, keys, matched, self.state.now + wait_ms)
        if not wait_ms or not self._wait_for_write(pending):
            self._reply_match(pending, matched, size)
            return
        self.state.at(pending.deadline, lambda: self._answer_match(pending))

    def _matched(self, keys: Sequence[bytes], start: int) -> tuple[int, int]:
        """How many leading keys are readable, the first `start` of which are, and the bytes of those from there on."""
        objects, readable = self.state.objects, self.state.readable
        if not self.state.overdue and all(segment.live for segment in self.state.segments.values()):
            return leading(objects, keys, start)
        size = 0
        for index in range(start, len(keys)):
            obj = objects.get(keys[index])
            if obj is None or not readable(obj):
                return index, size
            size += obj.size
        return len(keys), size

    def _wait_for_write(self, pending: PendingMatch) -> bool:
        """Wait if the next key is being written and one more may wait. Whether it does."""
        if pending.matched == len(pending.keys) or self._waiting >= self.state.config.waiting_max:
            return False
        key = pending.keys[pending.matched]
        if key not in self.state.writing:
            return False
        self._matching.setdefault(key, []).append(pending)
        self._waiting += 1
        return True

    def writes_ended(self) -> None:
        """Go on with the matches that waited for writes which ended in this step (`State.ended_keys`)."""
        keys, self.state.ended_keys = self.state.ended_keys, []
        for key in keys:
            for pending in self._matching.pop(key, ()):
                self._waiting -= 1
                if pending.answered:
                    continue
                pending.matched, _ = self._matched(pending.keys, pending.matched)
                if not self._wait_for_write(pending):
                    self._answer_match(pending)

    def _answer_match(self, pending: PendingMatch) -> None:
        if pending.answered:
            return
        pending.answered = True
        # What matched before the wait may be evicted by now.
        self._reply_match(pending, *self._matched(pending.keys, 0))

    def _reply_match(self, pending: PendingMatch, matched: int, size: int) -> None:
        self._count("match", len(pending.keys), matched, size)
        if pending.hold_ms:
            self.leases.hold(map(self.state.objects.__getitem__, pending.keys[:matched]), pending.hold_ms)
        self.calls.reply(pending.call, m.Matched(matched))

    # ---- the rest --------------------------------------------------------------------------------

    def _count(self, kind: str, requested: int, hits: int, size: int) -> None:
        asked = self.state.asked[kind]
        asked.requested_keys += requested
        asked.hit_keys += hits
        asked.hit_bytes += size

    def exists(self, command: m.Exists) -> None:
        check_keys(self.state.config, command.keys)
        found = [self.state.objects.get(key) for key in command.keys]
        readable = self.state.readable
        sizes = [obj.size if obj is not None and readable(obj) else 0 for obj in found]
        self.calls.reply(command.call, m.Existing(sizes))

    def list(self, command: m.List) -> None:
        if not 0 <= command.limit <= LIST_LIMIT_MAX:
            raise Invalid(f"limit is {command.limit}: give 1 to {LIST_LIMIT_MAX}, or 0 for {LIST_LIMIT_DEFAULT}")
        limit = command.limit or LIST_LIMIT_DEFAULT
        start = max(command.prefix, command.after)
        keys: list[bytes] = []
        more = False
        for key in self.state.names.irange(start, inclusive=(start != command.after or not start, True)):
            if not key.startswith(command.prefix):
                break
            if len(keys) == limit:
                more = True
                break
            keys.append(key)
        objects = [self.state.objects[key] for key in keys]
        copies = [min(len(self.state.live_copies(part)) for part in obj.slices) for obj in objects]
        self.calls.reply(command.call, m.Listed(keys, [obj.size for obj in objects], copies, more))
