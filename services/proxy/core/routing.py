"""Which engine a request goes to next: a routing table, and a state machine for each request. Decides; sends nothing.

A Route is asked with step() what to do first, and then again with the outcome of each leg. It tries every engine at
most once, so it always ends. Engines may be added while routes are under way: a route sees the table as it is then.

    start ──▶ Prefill ──done──▶ Decode ──done──▶ Finished        no prefill engine left: Decode(alone=True)
                │ ▲ fails: another  │ ▲ fails: another            no decode engine left: Unserved
                └─┘                 └─┘

What keeps a failing prefill from failing the request is invariant 16: the decode engine computes what it cannot load.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import NewType

Address = NewType("Address", str)
"""HOST:PORT of an engine's HTTP server."""


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


class Outcome(Enum):
    """How a leg ended."""

    DONE = "done"  # the engine answered: a decode with any status, a prefill with anything that is not a 5xx
    UNREACHABLE = "unreachable"  # no connection: the engine cannot have seen the request
    BROKEN = "broken"  # the engine may have seen the request, but gave no answer that can be used
    TIMED_OUT = "timed_out"  # as BROKEN, for want of time


@dataclass(frozen=True, slots=True)
class Prefill:
    """Send the prefill leg to `to`."""

    to: Address


@dataclass(frozen=True, slots=True)
class Decode:
    """Send the request to `to`. Alone: there should have been a prefill before, and none of the engines gave it."""

    to: Address
    alone: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """The request has its answer."""


@dataclass(frozen=True, slots=True)
class Unserved:
    """No engine is left to ask: these decode engines failed. May_have_run: sending it again may do its work twice."""

    failed: tuple[Address, ...]
    may_have_run: bool


Decision = Prefill | Decode | Finished | Unserved


class RoutingTable:
    """The engines by role, each role in round robin."""

    def __init__(self, prefill: tuple[Address, ...] = (), decode: tuple[Address, ...] = ()) -> None:
        self._engines: dict[Role, list[Address]] = {Role.PREFILL: [], Role.DECODE: []}
        self._next: dict[Role, int] = {Role.PREFILL: 0, Role.DECODE: 0}
        for role, addresses in ((Role.PREFILL, prefill), (Role.DECODE, decode)):
            for address in addresses:
                self.add(role, address)

    def engines(self, role: Role) -> tuple[Address, ...]:
        return tuple(self._engines[role])

    def add(self, role: Role, address: Address) -> bool:
        """False if it is there already."""
        if address in self._engines[role]:
            return False
        self._engines[role].append(address)
        self.check()
        return True

    def begin(self, *, prefill: bool, repeatable: bool) -> "Route":
        """The route of a new request. Repeatable: a second engine may be asked even if a first one may have run it."""
        return Route(self, prefill=prefill, repeatable=repeatable)

    def pick(self, role: Role, tried: frozenset[Address]) -> Address | None:
        """The next engine in turn that was not tried yet; the turn goes on behind it."""
        engines = self._engines[role]
        for offset in range(len(engines)):
            index = (self._next[role] + offset) % len(engines)
            if engines[index] not in tried:
                self._next[role] = (index + 1) % len(engines)
                return engines[index]
        return None

    def check(self) -> None:
        for role, engines in self._engines.items():
            assert len(set(engines)) == len(engines), f"a {role} engine is listed twice: {engines}"
            assert 0 <= self._next[role] < max(1, len(engines)), f"the turn of {role} is out of bounds"


class Route:
    """One request's way through the engines."""

    def __init__(self, table: RoutingTable, *, prefill: bool, repeatable: bool) -> None:
        self._table = table
        self._repeatable = repeatable
        self._wants_prefill = prefill
        self._tried: dict[Role, tuple[Address, ...]] = {Role.PREFILL: (), Role.DECODE: ()}
        self._last: Decision | None = None

    def step(self, outcome: Outcome | None = None) -> Decision:
        """What to do now: first without an outcome, then with the outcome of what was decided last."""
        assert (outcome is None) == (self._last is None), "an outcome answers a decision"
        assert not isinstance(self._last, Finished | Unserved), "the route has ended"
        self._last = self._decide(outcome)
        return self._last

    def _decide(self, outcome: Outcome | None) -> Decision:
        match self._last:
            case None:
                served = bool(self._table.engines(Role.DECODE))  # else a prefill would be for nothing
                return self._prefill() if self._wants_prefill and served else self._decode(alone=False)
            case Prefill():
                return self._decode(alone=False) if outcome is Outcome.DONE else self._prefill()
            case Decode(alone=alone):
                if outcome is Outcome.DONE:
                    return Finished()
                if outcome is not Outcome.UNREACHABLE and not self._repeatable:
                    return Unserved(self._tried[Role.DECODE], may_have_run=True)
                return self._decode(alone=alone)
        raise AssertionError(self._last)

    def _prefill(self) -> Decision:
        to = self._pick(Role.PREFILL)
        return self._decode(alone=True) if to is None else Prefill(to)

    def _decode(self, *, alone: bool) -> Decision:
        to = self._pick(Role.DECODE)
        return Unserved(self._tried[Role.DECODE], may_have_run=False) if to is None else Decode(to, alone)

    def _pick(self, role: Role) -> Address | None:
        to = self._table.pick(role, frozenset(self._tried[role]))
        if to is not None:
            self._tried[role] += (to,)
        return to
