"""Who may still read what: lookups give leases, which end with the read; matches give holds.

Keeps invariants 7 (an object's extents are nobody else's before `lease_until`) and 12 (what is remembered is bounded).
An object's leases end early only once all of them were given back, and never before a hold. Errors are on the long
side only: a lease that nobody gives back, or that is no longer remembered, lasts its full time.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from services.master.core.objects import Object
from services.master.core.tables import State


class Leases:
    def __init__(self, state: State) -> None:
        self.state = state
        self._given: OrderedDict[int, tuple[int, list[Object]]] = OrderedDict()  # lease -> its end, what is leased
        self._remembered = 0  # objects in it
        self._next = state.salt  # differs from master to master: none mistakes another's lease for its own

    def give(self, objects: list[Object]) -> int:
        """The number of a new lease on these objects."""
        state, now = self.state, self.state.now
        until = now + state.config.lease_ms
        for obj in objects:
            obj.readers = 1 if obj.lease_until <= now else obj.readers + 1
            obj.lease_until = until
        self._next += 1
        lease = state.epoch << 32 | self._next
        self._given[lease] = until, objects
        self._remembered += len(objects)
        self._forget()
        return lease

    def hold(self, objects: Iterable[Object], hold_ms: int) -> None:
        """Keep these objects where they are for a while, until somebody looks them up."""
        now = self.state.now
        until = now + min(hold_ms, self.state.config.lease_ms)
        for obj in objects:
            if obj.lease_until <= now:
                obj.readers = 0
            obj.held_until = max(obj.held_until, until)
            obj.lease_until = max(obj.lease_until, until)

    def give_back(self, leases: Sequence[int]) -> None:
        """These reads have ended. Asking twice is asking once."""
        now = self.state.now
        for lease in leases:
            until, objects = self._given.pop(lease, (now, []))
            self._remembered -= len(objects)
            if until <= now:
                continue  # it ran out: those who count on the objects now came later
            for obj in objects:
                obj.readers -= 1
                if not obj.readers:
                    obj.lease_until = max(now, obj.held_until)

    def _forget(self) -> None:
        now, most = self.state.now, self.state.config.leased_max
        while self._given:
            lease, (until, objects) = next(iter(self._given.items()))
            if until > now and self._remembered <= most:
                break
            del self._given[lease]
            self._remembered -= len(objects)
