"""One more copy of a slice: from where, to where, and what must go for it if there is no room.

Whose turn it is, and what follows from the outcome, is decided in `repair`. Keeps invariants 2 and 11: what is worth
less goes for a copy that is lost for good, never for one that a silent node may bring back.
"""

from enum import Enum

from services.master.core.cluster import Node
from services.master.core.objects import Copy, Object, Slice
from services.master.core.phases import Phase
from services.master.core.placing import Placing
from services.master.core.room import Prospects, Room
from services.master.core.surplus import Surplus
from services.master.core.tables import State
from services.master.core.transfers import Owner, Transfers


class Begun(Enum):
    SENT = "sent"  # or no copy is needed
    NO_ROOM = "no room"
    ROOM_COMES = "room comes"  # something was evicted for it, which its node must forget first
    EVICTED = "evicted"  # the object itself was


class Remaking:
    def __init__(self, state: State, placing: Placing, room: Room, transfers: Transfers, surplus: Surplus) -> None:
        self.state = state
        self.placing = placing
        self.room = room
        self.transfers = transfers
        self.surplus = surplus

    def begin(self, owner: Owner, obj: Object, number: int, prospects: Prospects) -> Begun:
        """Have slice `number` copied once more if it lacks a copy and none is being made."""
        part, state = obj.slices[number], self.state
        sources = state.live_copies(part)
        if not sources or len(state.staying_copies(part)) >= obj.wanted or self.transfers.has(obj, number):
            return Begun.SENT
        segments, links = state.segments, self.transfers.links
        givers = [segments[copy.segment].node for copy in sources]

        def can_take(node: Node) -> bool:
            return links.leads_to(givers, node)

        target = self.placing.place_copy(part, can_take)
        may_displace = target is None and self._is_lost(obj, part) and not self._awaits_link(part, givers)
        if may_displace and self.room.displace(obj, part, prospects, can_take):
            target = self.placing.place_copy(part, can_take)
            if target is None:
                return Begun.ROOM_COMES
        if target is None:
            return Begun.EVICTED if self._let_go(obj, part) else Begun.NO_ROOM
        taker = segments[target.segment].node
        usable = [copy for copy, giver in zip(sources, givers, strict=True) if links.is_open(giver, taker)]
        source = min(usable, key=lambda copy: self._cost(copy, taker.zone))
        self.transfers.send(owner, obj, number, source, target)
        return Begun.SENT

    def _awaits_link(self, part: Slice, givers: list[Node]) -> bool:
        """Whether there is room on a node to which copies failed: it is tried again soon, and nothing goes for it."""
        links, nodes = self.transfers.links, [segment.node for segment in self.placing.roomy(part)]
        return any(not links.leads_to(givers, node) and not links.is_given_up(givers, node) for node in nodes)

    def _is_lost(self, obj: Object, part: Slice) -> bool:
        """Whether copies are missing for good, rather than on a silent node that may come back."""
        return sum(not node.draining for node in self.state.holders(part)) < obj.wanted

    def _let_go(self, obj: Object, part: Slice) -> bool:
        """A slice on a draining node is not moved to where it would be the first to be evicted.

        Another copy is enough then; if there is none the object is evicted. Whether it was.
        """
        state = self.state
        is_calm = all(node.phase is Phase.LIVE and node.probed_at is None for node in state.nodes.values())
        is_calm = is_calm and not state.rest.left_ms(state.now)
        live, staying = state.live_copies(part), state.staying_copies(part)
        if not is_calm or len(staying) == len(live) or not self.room.is_worth_least(obj, part):
            return False
        if staying:
            self.surplus.drop_draining(obj, part)
        elif not self.room.is_read(obj):
            self.room.evict(obj)
            self.room.displaceable -= 1
            return True
        return False

    def _cost(self, copy: Copy, zone: str) -> tuple[bool, bool, int, int]:
        """What reading it costs: copies share the load between nodes, and the least full is read least, as a rule."""
        segment = self.state.segments[copy.segment]
        return segment.node.probed_at is not None, segment.node.zone != zone, segment.live_bytes, copy.segment
