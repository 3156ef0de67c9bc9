"""Copies that are missing are made again, node to node: which object next, from where, and to where.

Keeps invariants 2, 4 and 11: as long as one copy of every slice is left, the wanted number comes back, on distinct
nodes, fewest copies first, then the last used. A node that only blinks is waited for; one that returns after its copies
were made elsewhere gives the surplus back. Where pools are full, what is worth less goes for a copy that is lost for
good (invariant 12: bounded work a step). What is on its way is in `transfers`.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice

from services.master.core.allocator import aligned
from services.master.core.catalogue import Catalogue
from services.master.core.cluster import Node, Phase, Segment
from services.master.core.episodes import Episode
from services.master.core.objects import Copy, Object, Slice
from services.master.core.placing import Placing
from services.master.core.room import Prospects, Room
from services.master.core.tables import State
from services.master.core.transfers import Transfers

REVIEWS_PER_STEP = 1_024  # objects looked at, and as many begun, in one step: a step must stay short
PROMISES_MAX = 65_536  # puts whose answer waits for repair
VAIN_MAX = 256  # objects for which no room was found in one step: to look costs
RETRY_MS = 500  # before a transfer that failed, or found no room, is tried again
ROOM_MS = 20  # until a node has forgotten what was evicted for a copy; meanwhile no other takes that room
ROOMS_MAX = 25  # so often room is made for one object before it is the turn of others


class Repair:
    def __init__(self, state: State, placing: Placing, room: Room, catalogue: Catalogue, transfers: Transfers) -> None:
        self.state = state
        self.placing = placing
        self.room = room
        self.catalogue = catalogue
        self.transfers = transfers
        # (no put waits for it, copies left, -last use, number, object)
        self._queue: list[tuple[bool, int, int, int, Object]] = []
        self._queued: dict[Object, None] = {}
        self._short: dict[Object, None] = {}  # no node to repair them to, or it failed: looked at again and again
        self._retrying = False
        self._promises: dict[Object, Callable[[], None]] = {}  # puts to be answered when the copies are there
        self._reviews: OrderedDict[Object, None] = OrderedDict()
        self._listed: dict[Segment, Iterator[Object]] = {}  # of these all objects, or those that are left
        self._episode = Episode(state)
        self._pumping_at: int | None = None
        self._room_at = 0  # room is being made until then
        self._room_for = 0  # for this write
        self._rooms = 0  # made for it, one after the other

    @property
    def pending(self) -> int:
        """Objects known to lack copies."""
        return len(self._queued) + len(self._short) + len(self.transfers.under_way)

    @property
    def is_reviewing(self) -> bool:
        """Whether objects are still to be looked at."""
        return bool(self._reviews or self._listed)

    # ---- what needs work -------------------------------------------------------------------------

    def want(self, obj: Object) -> None:
        """Look at an object that may lack copies."""
        left = self._look(obj)
        if obj in self._queued:
            return
        staying = min(len(self._staying(part)) for part in obj.slices) if self.state.draining else left
        if left and staying < obj.wanted:
            self._short.pop(obj, None)
            self._queued[obj] = None
            is_promised = obj in self._promises
            heapq.heappush(self._queue, (not is_promised, left, -obj.used, self.state.number(), obj))
        elif left:
            self._keep_promise(obj)

    def _look(self, obj: Object) -> int:
        """Its live copies; 0: it cannot be read."""
        left = min(len(self._live(part)) for part in obj.slices) if self._is_there(obj) else 0
        if 0 < left < obj.wanted:
            self.state.missing[obj] = obj.wanted - left
        else:
            self.state.missing.pop(obj, None)
        return left

    def promise(self, obj: Object, until: int, answer: Callable[[], None]) -> None:
        """Repair an object before others, and `answer` when it has its copies, can have no more, or time is up."""
        if len(self._promises) >= PROMISES_MAX:
            answer()
            self.want(obj)
            return
        assert obj not in self._promises
        self._promises[obj] = answer
        self.want(obj)
        self.state.at(until, lambda: self._keep_promise(obj))

    def _keep_promise(self, obj: Object) -> None:
        answer = self._promises.pop(obj, None)
        if answer is not None:
            answer()

    def _is_there(self, obj: Object) -> bool:
        return self.state.objects.get(obj.key) is obj

    def suspected(self, node: Node) -> None:
        """A node blinks: if it stays away its copies are made elsewhere."""
        since = node.suspect_since

        def look() -> None:
            still = self.state.nodes.get(node.node_id) is node and node.phase is not Phase.LIVE
            if still and node.suspect_since == since:
                self.review(node)

        self.state.at(self.state.now + self.state.config.repair_after_ms, look)

    def review(self, node: Node) -> None:
        """Look at every object of a node: it went, or it came back."""
        for segment in node.segments:
            self._listed[segment] = reversed(list(segment.residents))  # as a rule the last used first

    def node_is_live(self, node: Node) -> None:
        """Room for what had none; and what was made elsewhere meanwhile is surplus now."""
        self.look_again()
        self.review(node)

    def look_again(self) -> None:
        """Another node can be had, or one less."""
        self._reviews.update(self._short)
        self._short = {}

    # ---- doing it --------------------------------------------------------------------------------

    def pump(self) -> None:
        """At the end of a step: look at some objects, begin the transfers the budget allows."""
        self._pump()
        self._episode.look(self.pending)

    def _pump(self) -> None:
        for obj in islice(self._to_review(), REVIEWS_PER_STEP):
            self.want(obj)
            self._trim(obj)
        if self.is_reviewing:
            self._again_at(self.state.now)
        if not self._queue:
            return
        if self.state.now < self._room_at:
            self._again_at(self._room_at)
            return
        self.transfers.refill()
        if self.transfers.may_begin:
            self._begin_some()
        if self._queue and not self.transfers.are_many:
            self._again_at(self.transfers.budget_at())

    def _to_review(self) -> Iterator[Object]:
        while self._reviews:
            yield self._reviews.popitem(last=False)[0]
        for segment, objects in list(self._listed.items()):
            yield from objects
            del self._listed[segment]

    def _begin_some(self) -> None:
        self.room.displaceable = self.state.config.evictions_per_step_max
        prospects, short = self.room.prospects(), len(self._short)
        for _ in range(REVIEWS_PER_STEP):
            if not self._queue or not self.transfers.may_begin:
                break
            if self.room.displaceable <= 0 or self.state.now < self._room_at or len(self._short) > short + VAIN_MAX:
                break
            *_, obj = heapq.heappop(self._queue)
            del self._queued[obj]
            if not self._is_there(obj):
                self._keep_promise(obj)
            elif self.state.draining or not self.room.is_hopeless(obj, prospects):
                self._begin(obj, prospects)
            else:
                self._find_no_room(obj)

    def _again_at(self, when: int) -> None:
        if self._pumping_at is None or self._pumping_at <= self.state.now or when < self._pumping_at:
            self._pumping_at = when
            self.state.at(when, lambda: None)  # the step itself pumps

    def _live(self, part: Slice) -> list[Copy]:
        segments = self.state.segments
        return [copy for copy in part.copies if copy.segment in segments and segments[copy.segment].live]

    def _staying(self, part: Slice) -> list[Copy]:
        """Those of the live ones that are not on a node that is to go."""
        return [copy for copy in self._live(part) if not self.state.segments[copy.segment].node.draining]

    def without_room(self, node: Node) -> int:
        """Objects with a copy on the node that could not be copied to another one."""
        numbers = {segment.number for segment in node.segments}
        return sum(any(copy.segment in numbers for part in obj.slices for copy in part.copies) for obj in self._short)

    def _begin(self, obj: Object, prospects: Prospects) -> None:
        """One more copy of every slice that lacks one; more are begun when these are done."""
        for number, part in enumerate(obj.slices):
            if not self._live(part) or len(self._staying(part)) >= obj.wanted or self.transfers.has(obj, number):
                continue
            if not self._begin_slice(obj, number, part, prospects):
                return

    def _begin_slice(self, obj: Object, number: int, part: Slice, prospects: Prospects) -> bool:
        """Whether it may be the next slice's turn."""
        segments, links, sources = self.state.segments, self.transfers.links, self._live(part)
        givers = [segments[copy.segment].node for copy in sources]

        def can_take(node: Node) -> bool:
            return links.leads_to(givers, node)

        target = self.placing.place_copy(part, can_take)
        may_displace = target is None and self._is_lost(obj, part) and not self._awaits_link(part, givers)
        if may_displace and self.room.displace(obj, part, prospects, can_take):
            target = self.placing.place_copy(part, can_take)
            if target is None:
                self._await_room(obj)
                return False
        if target is None:
            if self._let_go(obj, part):
                return False
            self._find_no_room(obj)
            return True
        taker = segments[target.segment].node
        usable = [copy for copy, giver in zip(sources, givers, strict=True) if links.is_open(giver, taker)]
        source = min(usable, key=lambda copy: self._cost(copy, taker.zone))
        command_id, until = self.transfers.send(obj, number, part, source, target)
        self.state.at(until, lambda: self.failed(taker, command_id, "it did not end in time"))
        return True

    def _awaits_link(self, part: Slice, givers: list[Node]) -> bool:
        """Whether there is room on a node to which no copy got, so that it is tried again soon: nothing goes for it."""
        links, nodes = self.transfers.links, [segment.node for segment in self.placing.roomy(part)]
        return any(not links.leads_to(givers, node) and not links.is_given_up(givers, node) for node in nodes)

    def _is_lost(self, obj: Object, part: Slice) -> bool:
        """Whether copies are missing for good: a silent node may bring its own back."""
        return sum(not node.draining for node in self.state.holders(part)) < obj.wanted

    def _await_room(self, obj: Object) -> None:
        """Something was evicted: its node has to forget it first, or more has to go."""
        self._rooms = self._rooms + 1 if self._room_for == obj.write_id else 1
        self._room_for = obj.write_id
        if self._rooms > ROOMS_MAX:
            self._room_for = 0
            self._put_off(obj)
            return
        self._room_at = self.state.now + ROOM_MS
        self.want(obj)

    def _find_no_room(self, obj: Object) -> None:
        self._put_off(obj)
        if obj in self._promises and all(node.probed_at is None for node in self.state.nodes.values()):
            self._keep_promise(obj)  # else one may yet turn out well

    def _let_go(self, obj: Object, part: Slice) -> bool:
        """A slice on a node that is to go is not moved to where it would be the first to be evicted.

        Another copy is enough then; without one the object is evicted. Whether it was.
        """
        state = self.state
        is_calm = all(node.phase is Phase.LIVE and node.probed_at is None for node in state.nodes.values())
        is_calm = is_calm and not state.rest.left_ms(state.now)
        live, staying = self._live(part), self._staying(part)
        if not is_calm or len(staying) == len(live) or not self.room.is_worth_least(obj, part):
            return False
        if staying:
            self._drop_going(obj, part, live, staying)
        elif not self.room.is_read(obj):
            self.room.evict(obj)
            self.room.displaceable -= 1
            self._keep_promise(obj)
            return True
        return False

    def _cost(self, copy: Copy, zone: str) -> tuple[bool, bool, int, int]:
        """Of reading it: copies on different nodes share the load; the least full is the least read, as a rule."""
        segment = self.state.segments[copy.segment]
        return segment.node.probed_at is not None, segment.node.zone != zone, segment.live_bytes, copy.segment

    def _put_off(self, obj: Object) -> None:
        self._short[obj] = None
        if not self._retrying:
            self._retrying = True
            self.state.at(self.state.now + RETRY_MS, self._retry)

    def _retry(self) -> None:
        self._retrying = False
        again = list(islice(self._short, REVIEWS_PER_STEP))
        for obj in again:
            del self._short[obj]
        self._reviews.update(dict.fromkeys(again))
        if self._short:
            self._put_off(next(iter(self._short)))

    # ---- outcomes --------------------------------------------------------------------------------

    def done(self, node: Node, command_id: int) -> None:
        """The node holds the copy, verified and recorded."""
        transfer = self.transfers.take(node, command_id)
        if transfer is None:
            return
        obj, part = transfer.obj, transfer.obj.slices[transfer.number]
        if not self._is_there(obj):
            self.transfers.give_back(transfer)
            self._keep_promise(obj)
            return
        self.catalogue.add_copy(obj, part, transfer.target)
        self.state.counters.repaired_copies += 1
        self.want(obj)
        self._trim(obj)
        if self.transfers.links.worked(transfer.giver, node):
            self.look_again()

    def refused(self, node: Node, command_id: int, reason: str) -> None:
        """The node could not: its source may be the one that is not well."""
        transfer = node.copying.get(command_id)
        if transfer is not None:
            self.state.unreached.append(transfer.source.segment)
            self.failed(node, command_id, reason)

    def failed(self, node: Node, command_id: int, reason: str = "") -> None:
        """The node could not, or did not in time, or is gone. It reads into memory of its own: nothing lands late.

        `reason`: what is wrong between the two nodes; empty: nothing that is known.
        """
        transfer = self.transfers.take(node, command_id)
        if transfer is None:
            return
        self.transfers.give_back(transfer)
        self.state.counters.failed_repairs += 1
        if reason:
            self.transfers.note_failure(transfer, reason)
        self._put_off(transfer.obj)

    def source_is_corrupt(self, node: Node, command_id: int) -> None:
        """The node read other bytes than were recorded: no further reader is sent to that copy."""
        transfer = node.copying.get(command_id)
        self.failed(node, command_id)
        if transfer is not None:
            self.drop_corrupt(transfer.obj, transfer.number, transfer.source)

    def drop_corrupt(self, obj: Object, number: int, copy: Copy) -> bool:
        """A copy has other bytes than were recorded: it goes, with a last one the object. False: it had gone."""
        part = obj.slices[number]
        if self.state.objects.get(obj.key) is not obj or copy not in part.copies:
            return False
        self.state.counters.corrupt_copies += 1
        self.catalogue.drop_copy(obj, part, copy)
        if part.copies:
            self.want(obj)
        else:
            self.state.counters.lost_objects += 1
            self.catalogue.discard(obj)
        return True

    def node_is_away(self, node: Node) -> None:
        for command_id in list(node.copying):
            self.failed(node, command_id)

    def _trim(self, obj: Object) -> None:
        """Give back live copies above what is wanted: those that share a zone or a host, from the fullest segments."""
        if not self._is_there(obj):
            return
        for number, part in enumerate(obj.slices):
            live = self._live(part)
            if self.state.draining and not self.transfers.has(obj, number):
                live = self._drain(obj, part, live)
            while len(live) > obj.wanted:
                surplus = max(live, key=lambda copy: self._dispensable(copy, live))
                live.remove(surplus)
                self.catalogue.drop_copy(obj, part, surplus)
                self.state.counters.trimmed_copies += 1

    def _drain(self, obj: Object, part: Slice, live: list[Copy]) -> list[Copy]:
        """Drop the copies on nodes that are to go, where others have as many as can be; the live ones that are left."""
        staying = self._staying(part)
        could_be = min(obj.wanted, len(self.state.nodes) - self.state.draining)
        if len(staying) < max(1, could_be):
            return live
        self._drop_going(obj, part, live, staying)
        return staying

    def _drop_going(self, obj: Object, part: Slice, live: list[Copy], staying: list[Copy]) -> None:
        for copy in live:
            if copy not in staying:
                self.catalogue.drop_copy(obj, part, copy)
                self.state.counters.drained_copies += 1
        self._look(obj)

    def _dispensable(self, copy: Copy, among: list[Copy]) -> tuple[int, int, float, int]:
        segment = self.state.segments[copy.segment]
        nodes = [self.state.segments[other.segment].node for other in among]
        return (
            sum(node.zone == segment.node.zone for node in nodes),
            sum(node.host_id == segment.node.host_id for node in nodes),
            (segment.live_bytes + segment.reserved_bytes) / aligned(segment.capacity),
            -copy.segment,
        )
