"""Which engines the proxy has: those it was started with, and what operators changed since. Decides; keeps nothing.

A change is remembered only where it differs from the command line. So an engine that is given there and was removed
stays away, until it is added again or no longer given; one that was added stays, until it is removed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from services.proxy.core.fleet import Address, Fleet, Role

ENGINES_MAX: Final = 1024  # of one role, those that were removed among them


class Wish(StrEnum):
    """What operators want of an engine."""

    ACTIVE = "active"
    DRAINING = "draining"
    REMOVED = "removed"


class Unchanged(Exception):
    """The change cannot be made; str() says why."""


class AlreadyThere(Unchanged):
    pass


class NotThere(Unchanged):
    pass


class TooMany(Unchanged):
    pass


Changes = Mapping[Role, Mapping[Address, Wish]]


@dataclass(frozen=True, slots=True)
class Membership:
    """Given: the engines of the command line. Every change makes a new one."""

    given: Mapping[Role, tuple[Address, ...]]
    changes: Changes = field(default_factory=dict)

    def engines(self, role: Role) -> dict[Address, Wish]:
        """ACTIVE or DRAINING: the given ones first, then the added ones, in their order."""
        changed = self.changes.get(role, {})
        wishes = {address: Wish.ACTIVE for address in self.given.get(role, ())} | dict(changed)
        return {address: wish for address, wish in wishes.items() if wish is not Wish.REMOVED}

    def added(self, role: Role, address: Address) -> "Membership":
        """Also takes a draining engine back."""
        if self.engines(role).get(address) is Wish.ACTIVE:
            raise AlreadyThere("Instance already exists.")
        return self._with(role, address, Wish.ACTIVE)

    def drained(self, role: Role, address: Address) -> "Membership":
        self._check_known(role, address)
        return self._with(role, address, Wish.DRAINING)

    def removed(self, role: Role, address: Address) -> "Membership":
        self._check_known(role, address)
        return self._with(role, address, Wish.REMOVED)

    def _check_known(self, role: Role, address: Address) -> None:
        if address not in self.engines(role):
            raise NotThere(f"{address} is not among the {role.value} instances.")

    def _with(self, role: Role, address: Address, wish: Wish) -> "Membership":
        changed = dict(self.changes.get(role, {}))
        given = self.given.get(role, ())
        if wish is (Wish.ACTIVE if address in given else Wish.REMOVED):
            changed.pop(address, None)  # as the command line has it
        else:
            changed[address] = wish
        if len(changed.keys() | given) > ENGINES_MAX:
            raise TooMany(f"The proxy has {ENGINES_MAX} {role.value} instances already.")
        return Membership(self.given, {**self.changes, role: changed})

    def bring(self, fleet: Fleet) -> None:
        """Makes the fleet what it should be; what is in it already keeps its state."""
        for role in Role:
            wanted = self.engines(role)
            for engine in fleet.engines(role):
                if engine.address not in wanted:
                    fleet.remove(role, engine.address)
            for address, wish in wanted.items():
                if wish is Wish.ACTIVE:
                    fleet.add(role, address)
                else:
                    if fleet.get(role, address) is None:
                        fleet.add(role, address)
                    fleet.drain(role, address)


def without_stale(membership: Membership) -> Membership:
    """Forgets removals of engines that the command line does not give any more: who gives them again wants them."""
    kept = {
        role: {
            address: wish
            for address, wish in changed.items()
            if wish is not Wish.REMOVED or address in membership.given.get(role, ())
        }
        for role, changed in membership.changes.items()
    }
    return Membership(membership.given, kept)
