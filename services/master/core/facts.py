"""Stat: what is known of objects, told without using them. For people, and for what reads every copy there is.

Keeps invariant 7 for who asks for a lease. Neither the order of eviction nor a counter of hits changes by it.
"""

from itertools import chain

from services.master.core import messages as m
from services.master.core.calls import Calls
from services.master.core.leases import Leases
from services.master.core.messages import Result
from services.master.core.placing import make_places
from services.master.core.tables import State


class Facts:
    def __init__(self, state: State, calls: Calls, leases: Leases) -> None:
        self.state = state
        self.calls = calls
        self.leases = leases

    def stat(self, command: m.Stat) -> None:
        self.calls.check_keys(command.keys)
        state, now = self.state, self.state.now
        found = [state.objects.get(key) for key in command.keys]
        objects = [None if obj is None or 0 < obj.expires_at <= now else obj for obj in found]
        there = [obj for obj in objects if obj is not None]
        reading_ms = [max(0, obj.lease_until - now) if obj else 0 for obj in objects]
        lease = self.leases.give(there) if command.lease and there else 0
        parts = list(chain.from_iterable(obj.slices for obj in there))
        held = [[copy for copy in part.copies if copy.segment in state.segments] for part in parts]
        places = make_places([len(obj.slices) if obj else 0 for obj in objects], parts, held)
        self.calls.reply(
            command.call,
            m.Known(
                results=[Result.OK if obj else Result.MISS for obj in objects],
                sizes=[obj.size if obj else 0 for obj in objects],
                places=places,
                silent=[at for at, number in enumerate(places.segments) if not state.segments[number].live],
                wanted=[obj.wanted if obj else 0 for obj in objects],
                pins=[obj.pin if obj else 0 for obj in objects],
                ttls_ms=[max(0, obj.expires_at - now) if obj else 0 for obj in objects],
                leases_ms=reading_ms,
                write_ids=[obj.write_id if obj else 0 for obj in objects],
                depths=[obj.depth if obj else 0 for obj in objects],
                lease_ms=state.config.lease_ms - 1 if lease else 0,
                lease=lease,
            ),
        )
