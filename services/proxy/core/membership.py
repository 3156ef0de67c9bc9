"""Which engines the proxy has: those it was started with, those that were found, and what operators changed since.
Decides; stores nothing.

A change is remembered only where it differs from what is given or found. So a given engine that was removed stays away
until it is added again or no longer given; one that was added stays until it is removed. That a found engine was
drained or removed is forgotten once it is no longer found: whoever has its address next is another engine.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from services.proxy.core.engine import Address, Health, Role
from services.proxy.core.fleet import Fleet

ENGINES_MAX: Final = 1024  # of one role, removed ones included


class Wish(StrEnum):
    """What operators want of an engine."""

    ACTIVE = "active"
    DRAINING = "draining"
    REMOVED = "removed"


class Unchanged(Exception):
    """The change cannot be made. str() says why."""


class AlreadyThere(Unchanged):
    pass


class NotThere(Unchanged):
    pass


class TooMany(Unchanged):
    pass


Found = Mapping[Role, tuple[Address, ...]]
Changes = Mapping[Role, Mapping[Address, Wish]]


@dataclass(frozen=True, slots=True)
class Membership:
    """Given: the engines of the command line; found: those of --discover. Every change makes a new Membership."""

    given: Mapping[Role, tuple[Address, ...]]
    changes: Changes = field(default_factory=dict)
    found: Found = field(default_factory=dict)
    leaving: Mapping[Role, frozenset[Address]] = field(
        default_factory=dict
    )  # were found once, and go when nobody needs them

    def expected(self, role: Role) -> tuple[Address, ...]:
        """The engines, had nobody changed anything."""
        return tuple(dict.fromkeys((*self.given.get(role, ()), *self.found.get(role, ()))))

    def engines(self, role: Role) -> dict[Address, Wish]:
        """ACTIVE or DRAINING: given ones first, then found and added ones, in their order."""
        wishes = dict.fromkeys(self.expected(role), Wish.ACTIVE) | dict(self.changes.get(role, {}))
        return {address: wish for address, wish in wishes.items() if wish is not Wish.REMOVED}

    def added(self, role: Role, address: Address) -> "Membership":
        """Also takes back a draining engine."""
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
        if address in self.leaving.get(role, ()):
            raise NotThere(f"{address} is no longer found: it leaves the {role.value} instances by itself.")
        if address not in self.engines(role):
            raise NotThere(f"{address} is not among the {role.value} instances.")

    def _with(self, role: Role, address: Address, wish: Wish) -> "Membership":
        changed = dict(self.changes.get(role, {}))
        expected = self.expected(role)
        if wish is (Wish.ACTIVE if address in expected else Wish.REMOVED):
            changed.pop(address, None)  # as it is given or found
        else:
            changed[address] = wish
        if len(changed.keys() | expected) > ENGINES_MAX:
            raise TooMany(f"The proxy has {ENGINES_MAX} {role.value} instances already.")
        return replace(self, changes={**self.changes, role: changed})

    def following(self, found: Found, changes: Changes) -> "Membership":
        """With what is found and changed now. What is no longer found leaves: it gets nothing new, and goes when nobody
        needs it."""
        after = replace(self, found=found, changes=changes)
        leaving = {
            role: (self.leaving.get(role, frozenset()) | frozenset(self.found.get(role, ())))
            - frozenset(after.expected(role))
            - after.engines(role).keys()
            for role in Role
        }
        return replace(after, leaving=leaving)

    def bring(self, fleet: Fleet) -> "Membership":
        """Makes the fleet what it should be; engines already in it keep their state, found ones are probed before they
        are offered. Returns the membership without those that have left by now; while some are still leaving, it must
        be called again."""
        leaving: dict[Role, frozenset[Address]] = {}
        for role in Role:
            wanted = self.engines(role)
            for engine in fleet.engines(role):
                if engine.address in wanted:
                    continue
                if engine.address in self.leaving.get(role, ()) and engine.requests + engine.awaited:
                    fleet.drain(role, engine.address)
                    leaving[role] = leaving.get(role, frozenset()) | {engine.address}
                else:
                    fleet.remove(role, engine.address)
            for address, wish in wanted.items():
                if wish is Wish.ACTIVE:
                    is_found = address in self.found.get(role, ()) and address not in self.given.get(role, ())
                    fleet.add(role, address, Health.GONE if is_found else Health.UP)
                else:
                    if fleet.get(role, address) is None:
                        fleet.add(role, address)
                    fleet.drain(role, address)
        return replace(self, leaving=leaving)


def without_stale(membership: Membership, *, removals_only: bool = True) -> Changes:
    """Forgets removals (and drains) of engines no longer given or found: whoever gives them again wants them."""
    stale = {Wish.REMOVED} if removals_only else {Wish.REMOVED, Wish.DRAINING}
    return _kept(membership, lambda role, address, wish: wish not in stale or address in membership.expected(role))


def without_left(membership: Membership, found: Found) -> Changes:
    """Forgets removals and drains of engines that were found and no longer are."""
    after = replace(membership, found=found)
    return _kept(
        membership,
        lambda role, address, wish: (
            wish is Wish.ACTIVE or address not in membership.found.get(role, ()) or address in after.expected(role)
        ),
    )


def _kept(membership: Membership, keep: Callable[[Role, Address, Wish], bool]) -> Changes:
    return {
        role: {address: wish for address, wish in changed.items() if keep(role, address, wish)}
        for role, changed in membership.changes.items()
    }
