"""What all routes share: which engines fit a request, how KV gets from one to the next, and how many reruns there may
be.
"""

from typing import Final

from services.proxy.core.engine import Address, Engine, Handover, Role
from services.proxy.core.fleet import Fleet
from services.proxy.core.scheduling import Ask, Policy

CONCURRENCY: Final = 2048  # requests served at once, unless told otherwise
BUDGET_MAX: Final = float(CONCURRENCY)  # all of them may move away from an engine that dies
BUDGET_SHARE: Final = 0.2  # reruns that each request earns: failing engines cost at most a fifth more work


class Budget:
    """Bounds the reruns of all requests together."""

    def __init__(self) -> None:
        self._left = BUDGET_MAX

    def earn(self) -> None:
        self._left = min(BUDGET_MAX, self._left + BUDGET_SHARE)

    def spend(self) -> bool:
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Router:
    """What all routes share."""

    def __init__(self, fleet: Fleet, policies: dict[Role, Policy], handover: Handover | None = None) -> None:
        """Handover None: to be found out for each prefill engine."""
        self.fleet = fleet
        self.policies = policies
        self.handover = handover
        self.budget = Budget()

    def may_prefill(self, ask: Ask) -> bool:
        """Whether there is a prefill engine for it, and a way for its KV to leave it."""
        if self.handover is Handover.NONE:
            return False
        return len(self.fleet.engines(Role.PREFILL)) > len(self.unfit(Role.PREFILL, ask))

    def unfit(self, role: Role, ask: Ask) -> frozenset[Address]:
        """The engines that cannot do what the request needs. A model that no engine lists is for a decode engine to
        refuse: it may have been loaded a moment ago."""
        handed_over = ask.handed_over or role is Role.DECODE
        if handed_over and ask.home is None and (not ask.model or self.fleet.all_serve(role, ask.model)):
            return frozenset()
        engines = self.fleet.engines(role)
        unfit = frozenset(engine.address for engine in engines if not self._is_fit(engine, ask))
        if role is Role.DECODE and ask.home is None and len(unfit) == len(engines):
            return frozenset()
        return unfit

    def _is_fit(self, engine: Engine, ask: Ask) -> bool:
        if engine.role is Role.DECODE and ask.home is not None:
            return engine.address == ask.home
        if ask.model and not engine.may_serve(ask.model):
            return False
        if engine.role is Role.PREFILL and not ask.handed_over:
            return (self.handover or engine.handover) not in (Handover.PULL, Handover.PUSH)
        return True

    def handover_of(self, engine: Engine, ask: Ask) -> Handover | None:
        """None: its answer will tell. An engine of STORE is asked again with every prefill: one answer without
        kv_transfer_params proves little."""
        if not ask.handed_over:
            return Handover.STORE
        return self.handover or (None if engine.handover is Handover.STORE else engine.handover)
