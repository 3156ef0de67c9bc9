"""Missing copies are made again, node to node: which object is next, and what follows from the outcome.

Keeps invariants 2, 4 and 11: as long as one copy of every slice is left, the wanted number comes back, on distinct
nodes, fewest copies first, then the last used. A node that only blinks is waited for; one that returns after its copies
were made elsewhere gives the surplus back. Bounded work a step (invariant 12).
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice

from services.master.core.catalogue import Catalogue
from services.master.core.cluster import Node, Segment
from services.master.core.episodes import Episode
from services.master.core.objects import Copy, Object
from services.master.core.phases import Phase
from services.master.core.placing import Placing
from services.master.core.remaking import Begun, Remaking
from services.master.core.room import Prospects, Room
from services.master.core.surplus import Surplus
from services.master.core.tables import State
from services.master.core.transfers import Transfer, Transfers

REVIEWS_PER_STEP = 1_024  # objects looked at, and as many begun, in one step: a step must stay short
PROMISES_MAX = 65_536  # puts whose answer waits for repair
VAIN_MAX = 256  # objects for which no room was found in one step: looking costs
RETRY_MS = 500  # before a transfer that failed, or found no room, is tried again
ROOM_MS = 20  # for a node to forget what was evicted for a copy; nobody else takes that room meanwhile
ROOMS_MAX = 25  # times that room is made for one object before it is the others' turn


class Repair:
    def __init__(self, state: State, catalogue: Catalogue, placing: Placing, room: Room, transfers: Transfers) -> None:
        self.state = state
        self.catalogue = catalogue
        self.room = room
        self.transfers = transfers
        self.surplus = Surplus(state, catalogue, transfers)
        self.remaking = Remaking(state, placing, room, transfers, self.surplus)
        # (no put waits for it, copies left, -last use, number, object)
        self._queue: list[tuple[bool, int, int, int, Object]] = []
        self._queued: dict[Object, None] = {}
        self._short: dict[Object, None] = {}  # no room for them, or it failed: looked at again every RETRY_MS
        self._retrying = False
        self._promises: dict[Object, Callable[[], None]] = {}  # what to call when the copies are there
        self._reviews: OrderedDict[Object, None] = OrderedDict()
        self._listed: dict[Segment, Iterator[Object]] = {}  # all their objects, or those still to be looked at
        self._episode = Episode(state)
        self._pumping_at: int | None = None
        self._room_at = 0  # until then room is being made
        self._room_for = 0  # for the object of this write id
        self._rooms = 0  # how often for that one in a row

    @property
    def pending(self) -> int:
        """Objects known to lack copies."""
        return len(self._queued) + len(self._short) + len(self.transfers.under_way)

    @property
    def is_reviewing(self) -> bool:
        """Whether objects are still to be looked at."""
        return bool(self._reviews or self._listed)

    # ---- what lacks copies -----------------------------------------------------------------------

    def want(self, obj: Object) -> None:
        """Look at an object that may lack copies."""
        left = self.state.count_copies(obj)
        if obj in self._queued:
            return
        staying = min(len(self.state.staying_copies(part)) for part in obj.slices) if self.state.draining else left
        if left and staying < obj.wanted:
            self._short.pop(obj, None)
            self._queued[obj] = None
            is_promised = obj in self._promises
            heapq.heappush(self._queue, (not is_promised, left, -obj.used, self.state.number(), obj))
        elif left:
            self._keep_promise(obj)

    def promise(self, obj: Object, until: int, answer: Callable[[], None]) -> None:
        """Repair an object before others; `answer` once it has its copies, can get no more, or time is up."""
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

    def suspected(self, node: Node) -> None:
        """A node is suspect: if it stays so, its copies are made elsewhere."""
        since = node.suspect_since

        def look() -> None:
            still = self.state.nodes.get(node.node_id) is node and node.phase is not Phase.LIVE
            if still and node.suspect_since == since:
                self.review(node)

        self.state.at(self.state.now + self.state.config.repair_after_ms, look)

    def review(self, node: Node) -> None:
        """Look at every object of a node that went or came back."""
        for segment in node.segments:
            self._listed[segment] = reversed(list(segment.residents))  # the last used first, as a rule

    def node_is_live(self, node: Node) -> None:
        """There is room for what had none, and what was made elsewhere meanwhile is surplus."""
        self.look_again()
        self.review(node)

    def look_again(self) -> None:
        """There is another node, or one less."""
        self._reviews.update(self._short)
        self._short = {}

    # ---- work in each step -----------------------------------------------------------------------

    def pump(self) -> None:
        """At the end of a step: look at some objects and begin the transfers that the budget allows."""
        self._pump()
        self._episode.look(self.pending)

    def _pump(self) -> None:
        for obj in islice(self._to_review(), REVIEWS_PER_STEP):
            self.want(obj)
            self.surplus.trim(obj)
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
            if not self.state.is_there(obj):
                self._keep_promise(obj)
            elif self.state.draining or not self.room.is_hopeless(obj, prospects):
                self._begin(obj, prospects)
            else:
                self._find_no_room(obj)

    def _again_at(self, when: int) -> None:
        if self._pumping_at is None or self._pumping_at <= self.state.now or when < self._pumping_at:
            self._pumping_at = when
            self.state.at(when, lambda: None)  # the step itself pumps

    def without_room(self, node: Node) -> int:
        """Objects with a copy on the node that could not be copied to another one."""
        numbers = {segment.number for segment in node.segments}
        return sum(any(copy.segment in numbers for part in obj.slices for copy in part.copies) for obj in self._short)

    def _begin(self, obj: Object, prospects: Prospects) -> None:
        """Begin one more copy of every slice that lacks one; others follow when these are done."""
        for number in range(len(obj.slices)):
            begun = self.remaking.begin(self, obj, number, prospects)
            if begun is Begun.NO_ROOM:
                self._find_no_room(obj)
            elif begun is Begun.ROOM_COMES:
                self._await_room(obj)
                return
            elif begun is Begun.EVICTED:
                self._keep_promise(obj)
                return

    def _await_room(self, obj: Object) -> None:
        """Something was evicted: its node must forget it first, or more must go."""
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
            self._keep_promise(obj)  # else a probed node may turn out well

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

    # ---- what became of transfers ----------------------------------------------------------------

    def arrived(self, transfer: Transfer, *, opens_way: bool) -> None:
        self.state.counters.repaired_copies += 1
        self.want(transfer.obj)
        self.surplus.trim(transfer.obj)
        if opens_way:
            self.look_again()

    def came_too_late(self, transfer: Transfer) -> None:
        self._keep_promise(transfer.obj)

    def failed(self, transfer: Transfer) -> None:
        self.state.counters.failed_repairs += 1
        self._put_off(transfer.obj)

    def source_is_corrupt(self, transfer: Transfer) -> None:
        self.drop_corrupt(transfer.obj, transfer.number, transfer.source)

    def drop_corrupt(self, obj: Object, number: int, copy: Copy) -> bool:
        """Drop a copy that is not what was recorded, and with a last one the object. False if it had gone."""
        part = obj.slices[number]
        if not self.state.is_there(obj) or copy not in part.copies:
            return False
        self.state.counters.corrupt_copies += 1
        self.catalogue.drop_copy(obj, part, copy)
        if part.copies:
            self.want(obj)
        else:
            self.state.counters.lost_objects += 1
            self.catalogue.discard(obj)
        return True
