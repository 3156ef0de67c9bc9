"""One request's way through the engines: which legs it takes, and what follows when one fails. Decides; sends nothing.

A Route says with first() what to do, and with next() what follows from the outcome. It asks every engine at most once,
and after legs that may have run no more than RERUNS_MAX others: a request that kills engines must not kill them all. So
it always ends. Engines come and go meanwhile: a route sees the fleet as it is at each step.

    store, pull:  Prefill ──done──▶ Decode ──done──▶ Finished       no prefill engine left: Decode(alone=True)
                    │ ▲ fails: another │ ▲ fails: another           no decode engine left: Unserved
                    └─┘                └─┘
    push:         Pair ──done──▶ Finished; either leg fails: another pair, without a prefill engine Decode(alone=True)

A prefill engine that refuses a request and blames the client is believed once a decode engine says so too; if another
engine accepts it, the refusal was that engine's failure (took).

That a failing prefill does not fail the request is invariant 16: the decode engine computes what it cannot load.
"""

from dataclasses import dataclass
from typing import Final

from services.proxy.core.engine import Address, Booking, Engine, Handover, Role
from services.proxy.core.outcomes import Outcome
from services.proxy.core.router import Router
from services.proxy.core.scheduling import Ask

RERUNS_MAX: Final = 2  # of one request in one role, after legs that may have run


_UNSEEN: Final = frozenset({Outcome.UNREACHABLE, Outcome.UNCONNECTED, Outcome.BUSY})


@dataclass(frozen=True, slots=True)
class Prefill:
    """Send the prefill leg. Handover None: the answer will tell."""

    leg: Booking
    handover: Handover | None


@dataclass(frozen=True, slots=True)
class Decode:
    """Send the request. Alone: there should have been a prefill, and no engine gave one. Fetching: the KV still lies
    where the prefill's answer said."""

    leg: Booking
    alone: bool
    fetching: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """Send both legs at once, under a new transfer id."""

    prefill: Booking
    decode: Booking


@dataclass(frozen=True, slots=True)
class Finished:
    """The request has its answer."""


@dataclass(frozen=True, slots=True)
class Unserved:
    """No engine is left to ask: these decode engines failed. May_have_run: repeating it may do its work twice."""

    failed: tuple[Address, ...]
    may_have_run: bool


Decision = Prefill | Decode | Pair | Finished | Unserved


class Route:
    """One request's way through the engines. close() it always. Prefill: it is worth one. Repeatable: a second engine
    may be asked even if a first one may have run it."""

    def __init__(self, router: Router, ask: Ask, *, prefill: bool, repeatable: bool) -> None:
        router.budget.earn()
        self._router = router
        self._fleet = router.fleet
        self._ask = ask
        self._repeatable = repeatable
        self._prefill_wanted = prefill and router.may_prefill(ask)
        self._tried: dict[Role, tuple[Address, ...]] = {Role.PREFILL: (), Role.DECODE: ()}
        self._reruns = {Role.PREFILL: 0, Role.DECODE: 0}
        self._legs: dict[Role, Booking] = {}
        self._fetching = False
        self._source: Engine | None = None  # the prefill engine whose KV the decode leg may still need
        self._refused: list[Booking] = []
        self._has_paid = False
        self._last: Decision | None = None

    def first(self, now: float) -> Decision:
        """What to do first."""
        served = bool(self._candidates(Role.DECODE, now))  # else a prefill would be in vain
        self._last = self._prefill(now) if self._prefill_wanted and served else self._decode(now, alone=False)
        return self._last

    def next(self, role: Role, outcome: Outcome, now: float) -> Decision:
        """What to do after the leg of that role ended so. Of a pair it is the leg that decided it."""
        rerun = self._note(role, outcome, now)
        last = self._last
        match last:
            case Prefill():
                self._fetching = outcome is Outcome.DONE
                if outcome is Outcome.DONE:
                    self._need(last.leg.engine)
                    self._last = self._decode(now, alone=False)
                else:
                    self._last = self._prefill(now) if rerun else self._decode(now, alone=True)
            case Pair():
                self._end_all()
                if outcome is Outcome.DONE:
                    self._last = Finished()
                elif role is Role.PREFILL:  # the decode engine waited for nothing: ask it again
                    self._tried[Role.DECODE] = self._tried[Role.DECODE][:-1]
                    self._last = self._prefill(now) if rerun else self._decode(now, alone=True)
                else:
                    self._tried[Role.PREFILL] = self._tried[Role.PREFILL][:-1]
                    self._last = self._prefill(now) if rerun else self._unserved(may_have_run=True)
            case Decode(alone=alone):
                self._fetching = self._fetching and outcome in _UNSEEN  # else the KV may have been fetched, and freed
                if outcome is Outcome.DONE:
                    self._last = Finished()
                else:
                    self._last = self._decode(now, alone=alone) if rerun else self._unserved(may_have_run=True)
            case _:
                raise AssertionError(f"no leg was under way: {last}")
        return self._last

    def prefilled(self) -> None:
        """The prefill leg of a pair is done; the decode leg goes on."""
        leg = self._legs.pop(Role.PREFILL)
        self._fleet.answered(leg)
        self._fleet.ended(leg)
        self._need(leg.engine)

    def answered(self) -> None:
        """The decode engine's answer has begun, and goes to the client."""
        self._fleet.answered(self._legs[Role.DECODE])
        self._need(None)

    def took(self, now: float) -> list[Address]:
        """An engine accepted the request: those that refused it failed. Returns those to report."""
        refused, self._refused = self._refused, []
        return [leg.engine.address for leg in refused if self._fleet.misfit(leg, now)]

    def may_move(self, now: float) -> bool:
        """Whether to give up a decode leg that is late: only for an engine that is well and may be asked. The rerun is
        paid for, so that it will follow."""
        if self._has_paid:
            return True
        if not self._repeatable or self._reruns[Role.DECODE] >= RERUNS_MAX:
            return False
        others = self._candidates(Role.DECODE, now)
        self._has_paid = bool(others) and self._fleet.is_well(others[0], now) and self._router.budget.spend()
        return self._has_paid

    def broke_off(self, now: float) -> None:
        """The decode engine's answer broke off after it had begun: nothing can follow."""
        self._fleet.failed(self._legs[Role.DECODE], now)

    def close(self) -> None:
        """No leg is under way any more. May be called again."""
        self._end_all()
        self._need(None)

    def _need(self, source: Engine | None) -> None:
        """Until the decode engine has answered, operators must not believe that the source can go."""
        if self._source is not None:
            self._fleet.awaits(self._source, -1)
        if source is not None:
            self._fleet.awaits(source, 1)
        self._source = source

    def _note(self, role: Role, outcome: Outcome, now: float) -> bool:
        """Tells the fleet; returns whether another engine may be asked."""
        leg = self._legs.pop(role)
        match outcome:
            case Outcome.DONE | Outcome.NOTHING:
                self._fleet.answered(leg)
            case Outcome.UNREACHABLE | Outcome.UNCONNECTED | Outcome.DIED:
                self._fleet.unreachable(leg, refused=outcome is not Outcome.UNCONNECTED)
            case Outcome.BROKEN | Outcome.TIMED_OUT:
                self._fleet.failed(leg, now)
            case Outcome.REFUSED | Outcome.INVALID:
                self._refused.append(leg)
        self._fleet.ended(leg)
        if outcome is Outcome.DONE or outcome in _UNSEEN:
            return True
        if outcome is Outcome.NOTHING or (role is Role.DECODE and not self._repeatable):
            return False
        self._reruns[role] += 1
        if outcome in (Outcome.REFUSED, Outcome.INVALID):  # it did no work
            return outcome is Outcome.REFUSED and self._reruns[role] <= RERUNS_MAX
        has_paid, self._has_paid = self._has_paid and role is Role.DECODE, False
        return has_paid or (self._reruns[role] <= RERUNS_MAX and self._router.budget.spend())

    def _prefill(self, now: float) -> Decision:
        while (prefill := self._pick(Role.PREFILL, now)) is not None:
            handover = self._router.handover_of(prefill.engine, self._ask)
            if handover is not Handover.PUSH:
                return Prefill(prefill, handover)
            if prefill.engine.transfer_ids:
                decode = self._pick(Role.DECODE, now)
                return self._unserved(may_have_run=False) if decode is None else Pair(prefill, decode)
            self._end_all()  # nobody can say where its KV would lie
        return self._decode(now, alone=True)

    def _decode(self, now: float, *, alone: bool) -> Decision:
        leg = self._pick(Role.DECODE, now)
        return self._unserved(may_have_run=False) if leg is None else Decode(leg, alone, self._fetching)

    def _unserved(self, *, may_have_run: bool) -> Unserved:
        self._end_all()
        return Unserved(self._tried[Role.DECODE], may_have_run)

    def _candidates(self, role: Role, now: float) -> list[Engine]:
        not_to_ask = self._router.unfit(role, self._ask)
        return self._fleet.candidates(
            role, now, not_to_ask.union(self._tried[role]) if self._tried[role] else not_to_ask
        )

    def _pick(self, role: Role, now: float) -> Booking | None:
        candidates = self._candidates(role, now)
        if not candidates:
            return None
        engine = candidates[0] if len(candidates) == 1 else self._router.policies[role](candidates, self._ask)
        self._tried[role] += (engine.address,)
        self._legs[role] = self._fleet.book(engine, self._ask.prompt_tokens, now)
        return self._legs[role]

    def _end_all(self) -> None:
        for leg in self._legs.values():
            self._fleet.ended(leg)
        self._legs.clear()
