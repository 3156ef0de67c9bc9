"""The master's promises, broken one by one."""

from typing import Any

from services.master.core import ends
from services.master.core.adoption import Adoption
from services.master.core.allocator import Allocator
from services.master.core.calls import Calls
from services.master.core.catalogue import Catalogue
from services.master.core.ends import Ends
from services.master.core.eviction import SOFT_ROW, Residents
from services.master.core.expiry import Expiry
from services.master.core.extents import Extents
from services.master.core.leases import Leases
from services.master.core.messages import Pin
from services.master.core.placing import Placing
from services.master.core.puts import Puts
from services.master.core.reads import Reads
from services.master.core.repair import Repair
from services.master.core.room import Room
from services.master.core.surplus import Surplus
from services.master.core.tables import State
from tests.sim import world
from tests.sim.mutants.registry import Put, breaks


@breaks("7")
def skip_quarantine(put: Put) -> None:
    original = Extents.quarantine
    put(Extents, "quarantine", lambda self, *args, **kwargs: original(self, *args, **{**kwargs, "not_before": 0}))


@breaks("7")
def no_late_write_margin(put: Put) -> None:
    put(world, "CONFIG", {**world.CONFIG, "late_write_ms": 0})


@breaks("7")
def ignore_leases_in_reuse(put: Put) -> None:
    original = Catalogue.drop_copy

    def drop_copy(self: Catalogue, obj: Any, *args: Any) -> Any:
        obj.lease_until = 0
        return original(self, obj, *args)

    put(Catalogue, "drop_copy", drop_copy)


@breaks("7")
def give_back_the_leases_of_others(put: Put) -> None:
    original = Leases.give

    def give(self: Leases, objects: Any) -> int:
        lease = original(self, objects)
        for obj in objects:
            obj.readers = 1
        return lease

    put(Leases, "give", give)


@breaks("7, 8")
def no_rest_after_a_restart(put: Put) -> None:
    original = Adoption._adopt_all

    def adopt_all(self: Adoption, segment: Any, claims: Any) -> Any:
        segment.fenced = False
        return original(self, segment, claims)

    put(Adoption, "_adopt_all", adopt_all)


@breaks("3")
def overlap_extents(put: Put) -> None:
    original = Allocator.free
    put(Allocator, "free", lambda self, offset, length: original(self, offset, length + 256))


@breaks("4")
def copies_on_one_node(put: Put) -> None:
    original = Placing._place_slice

    def place(self: Placing, length: int, copies: int, *args: Any, **kwargs: Any) -> Any:
        placed = [original(self, length, 1, *args, **kwargs) for _ in range(copies)]
        return [copy for one in placed for copy in one]

    put(Placing, "_place_slice", place)


@breaks("9")
def offer_the_dead(put: Put) -> None:
    put(State, "readable", lambda self, obj: True)
    put(Reads, "_offered", lambda self, command, parts: [part.copies for part in parts])


@breaks("9, 11")
def forget_to_forget(put: Put) -> None:
    put(Extents, "flush_forgets", lambda self: None)


@breaks("5")
def carry_out_repeats(put: Put) -> None:
    def begin(self: Calls, call: int, request_id: bytes, kind: Any) -> bool:
        self._waiting.setdefault((kind, request_id), []).append(call)
        return True

    put(Calls, "begin", begin)


@breaks("2")
def answer_before_it_is_recorded(put: Put) -> None:
    original = Ends.end

    def end(self: Ends, command: Any) -> None:
        original(self, command)
        for command_id, recording in list(self.recording.items()):
            del recording.node.outstanding[command_id]
            self.done(command_id)

    put(Ends, "end", end)


@breaks("8")
def adopt_conflicting_claims(put: Put) -> None:
    put(Adoption, "_fits", lambda self, obj, claim: claim.slice_index < len(obj.slices))


@breaks("2, 8")
def adopt_nothing(put: Put) -> None:
    put(Adoption, "_adopt_all", lambda self, segment, claims: iter(()))


@breaks("2, 11")
def never_repair(put: Put) -> None:
    put(Repair, "want", lambda self, obj: None)


@breaks("11")
def keep_surplus(put: Put) -> None:
    put(Surplus, "trim", lambda self, obj: None)


@breaks("2, 11")
def repair_into_free_space_only(put: Put) -> None:
    put(Room, "displace", lambda self, obj, part, prospects, can_take: False)


@breaks("2, 11")
def displace_what_is_wanted_more(put: Put) -> None:
    put(Room, "_worth", lambda self, obj: (Pin.HARD, 0.0))


@breaks("1, 2")
def keep_what_is_replaced(put: Put) -> None:
    original = Catalogue.show

    def show(self: Catalogue, obj: Any) -> Any:
        return self.discard(obj) if obj.key in self.state.objects else original(self, obj)

    put(Catalogue, "show", show)


@breaks("1, 2")
def drop_before_it_is_replaced(put: Put) -> None:
    original = Puts._started

    def started(self: Puts, pending: Any) -> None:
        for key in pending.command.keys if pending.terms.replaces else ():
            if key in self.state.objects:
                self.room.catalogue.discard(self.state.objects[key])
        original(self, pending)

    put(Puts, "_started", started)


@breaks("5")
def number_replacing_puts_by_their_start(put: Put) -> None:
    put(ends, "renumber", lambda state, write: None)


@breaks("2, 12")
def evict_what_is_pinned_hard(put: Put) -> None:
    original = Residents.add

    def add(self: Residents, obj: Any, returns: int) -> None:
        original(self, obj, returns)
        if self._pinned.pop(obj, self) is None:
            self._rows[0][obj] = obj.used

    put(Residents, "add", add)


@breaks("2, 12")
def evict_what_is_pinned_softly_first(put: Put) -> None:
    original = Residents._next_row
    put(Residents, "_next_row", lambda self: SOFT_ROW if self._rows[SOFT_ROW] else original(self))


@breaks("2, 12")
def never_expire(put: Put) -> None:
    put(Expiry, "next_ms", lambda self: None)


@breaks("2, 12, 14")
def adopt_without_terms(put: Put) -> None:
    original = Adoption._adopt
    put(Adoption, "_adopt", lambda self, segment, claim: original(self, segment, claim._replace(ttl_ms=0, pin=0)))
