"""The engines as the proxy sees them: which are there, which answer, how much each has to do. Decides; sends nothing.

What is known of an engine comes from three sides: probes of its health (probed), the legs sent to it (answered, failed,
ended), and operators (add, drain, remove). Engines are offered in the order of `_tier`; one that refuses connections
never is, so that a dead engine costs requests nothing until a probe finds it again.

One connection says nothing about others: an engine that accepts no new ones may be about to end and still answer on
those it has, and that it does so does not mean that it accepts new ones.

Keeps invariant 12 for its part: what it remembers grows with the engines, never with the requests.
"""

from collections.abc import Callable
from typing import Final

from services.proxy.core.engine import (
    OPEN_S,
    Address,
    Booking,
    Breaker,
    Change,
    Engine,
    Handover,
    Health,
    Probe,
    Role,
)

FAILURES_MAX: Final = 3  # in a row, until the breaker opens
OPEN_S_MAX: Final = 30.0
SAY_EVERY_S: Final = 60.0
SILENT_PROBES: Final = 2  # unanswered probes in a row, until an engine counts as silent


def _ignore(_engine: Engine, _change: Change) -> None:
    pass


class Fleet:
    """`on_change` is called from within the call that makes the change."""

    def __init__(self, on_change: Callable[[Engine, Change], None] = _ignore) -> None:
        self._on_change = on_change
        self._engines: dict[Role, dict[Address, Engine]] = {role: {} for role in Role}
        self._common: dict[Role, frozenset[str] | None] = dict.fromkeys(Role)  # what all list; None: none lists any

    def engines(self, role: Role) -> tuple[Engine, ...]:
        """In the order in which they were added."""
        return tuple(self._engines[role].values())

    def get(self, role: Role, address: Address) -> Engine | None:
        return self._engines[role].get(address)

    # -- operators

    def add(self, role: Role, address: Address, health: Health = Health.UP) -> bool:
        """False if it is there already. Adding a draining engine lets it take requests again. GONE: not before a probe
        has found it."""
        known = self._engines[role].get(address)
        if known is None:
            self._engines[role][address] = Engine(role, address, health)
        elif known.draining:
            known.draining = False
        else:
            return False
        return True

    def remove(self, role: Role, address: Address) -> Engine | None:
        """Takes it out; its legs under way go on."""
        removed = self._engines[role].pop(address, None)
        self._compare(role)
        return removed

    def drain(self, role: Role, address: Address) -> Engine | None:
        """It gets no new legs; those under way go on."""
        engine = self._engines[role].get(address)
        if engine is not None:
            engine.draining = True
        return engine

    # -- choice

    def candidates(self, role: Role, now: float, tried: frozenset[Address] = frozenset()) -> list[Engine]:
        """The best engines there are, all equally good; empty if none can be asked."""
        best: list[Engine] = []
        best_tier = _NEVER
        for engine in self._engines[role].values():
            tier = _NEVER if engine.address in tried else _tier(engine, now)
            if tier < best_tier:
                best, best_tier = [engine], tier
            elif tier == best_tier != _NEVER:
                best.append(engine)
        return best

    def listing(self, role: Role, now: float) -> list[Engine]:
        """Those to ask for their models: the best, and others that have a model none of these has."""
        asked = self.candidates(role, now)
        listed = frozenset[str]().union(*(engine.models or () for engine in asked))
        more = (engine for engine in self._engines[role].values() if engine.is_offered and engine not in asked)
        return asked + [engine for engine in more if not (engine.models or frozenset()) <= listed]

    def is_well(self, engine: Engine, now: float) -> bool:
        """Whether nothing speaks against asking it."""
        return _tier(engine, now) == 0

    def serves(self, role: Role, now: float) -> bool:
        """Whether there is an engine that answers and may be asked."""
        return any(_tier(engine, now) < _SILENT for engine in self._engines[role].values())

    def book(self, engine: Engine, prompt_tokens: int, now: float) -> Booking:
        """A leg is sent to it. answered() or failed() may tell how it went; ended() must follow in any case."""
        trial = engine.breaker(now) is Breaker.HALF_OPEN and not engine.trial
        engine.trial |= trial
        engine.requests += 1
        engine.prompt_tokens += prompt_tokens
        return Booking(engine, prompt_tokens, trial, engine.health)

    # -- what legs tell

    def answered(self, booking: Booking) -> None:
        """The leg has a usable answer."""
        engine = booking.engine
        was_open = engine.open_until is not None
        engine.failures, engine.open_until, engine.open_s = 0, None, OPEN_S
        is_news = booking.health is engine.health or engine.is_mute  # else it answers what was sent before it was lost
        if is_news and engine.health is not Health.GONE:
            self._heard(engine)
        if was_open:
            self._on_change(engine, Change.CLOSED)

    def failed(self, booking: Booking, now: float) -> None:
        """The engine was reached and gave no usable answer."""
        engine = booking.engine
        if engine.health is Health.GONE:
            return  # what comes back may be another one
        engine.failures += 1
        if engine.open_until is not None:
            if not booking.trial:
                return  # sent before it opened, or for want of a better engine: it tells nothing new
            engine.open_s = min(2 * engine.open_s, OPEN_S_MAX)
        elif engine.failures < FAILURES_MAX:
            return
        engine.open_until = now + engine.open_s
        self._on_change(engine, Change.OPENED)

    def misfit(self, booking: Booking, now: float) -> bool:
        """It refused, blaming the client, what another engine accepted. Returns whether to report it: not too often."""
        self.failed(booking, now)
        engine = booking.engine
        if engine.said_at is not None and now - engine.said_at < SAY_EVERY_S:
            return False
        engine.said_at = now
        return True

    def unreachable(self, booking: Booking, *, refused: bool) -> None:
        """There was no connection to it. Refused: at once, so nobody listens there."""
        self._turn(booking.engine, Health.GONE if refused else Health.SILENT)

    def ended(self, booking: Booking) -> None:
        """The leg is over, however it went."""
        assert booking.open, "a leg ends once"
        booking.open = False
        engine = booking.engine
        engine.requests -= 1
        engine.prompt_tokens -= booking.prompt_tokens
        if booking.trial:
            engine.trial = False

    def awaits(self, engine: Engine, count: int) -> None:
        """So many more (or fewer) decode legs need the KV it holds."""
        engine.awaited += count

    # -- what probes tell

    def probed(self, engine: Engine, probe: Probe) -> bool:
        """Returns whether this shows, for the first time, that it is frozen: waiting for it may never end."""
        match probe:
            case Probe.OK:
                self._heard(engine)
            case Probe.REFUSED:
                self._turn(engine, Health.GONE)
            case Probe.NO_CONNECTION | Probe.NO_ANSWER:
                engine.unanswered += 1
                engine.is_mute |= probe is Probe.NO_ANSWER
                if engine.unanswered < SILENT_PROBES or engine.health is Health.GONE:
                    return False
                if engine.health is Health.UP:
                    self._turn(engine, Health.SILENT)
                was, engine.is_frozen = engine.is_frozen, engine.is_mute
                return engine.is_frozen and not was
        return False

    def _heard(self, engine: Engine) -> None:
        engine.unanswered, engine.is_mute, engine.is_frozen = 0, False, False
        self._turn(engine, Health.UP)

    def _turn(self, engine: Engine, health: Health) -> None:
        was, engine.health = engine.health, health
        if health is Health.GONE:  # what comes back may be another one
            engine.handover, engine.transfer_ids = None, ()
            engine.failures, engine.open_until, engine.open_s = 0, None, OPEN_S
        if (was is Health.UP) != (health is Health.UP):
            self._on_change(engine, Change.BACK if health is Health.UP else Change.LOST)

    def learned(self, engine: Engine, handover: Handover, transfer_ids: tuple[str, ...] = ()) -> None:
        """How a prefill engine hands over. STORE is only the default: it overrides nothing that is known."""
        if handover is Handover.STORE and engine.handover is not None:
            return
        engine.handover, engine.transfer_ids = handover, transfer_ids

    def listed(self, engine: Engine, models: frozenset[str]) -> None:
        """The models it says it serves."""
        if engine.models != models:
            engine.models = models
            self._compare(engine.role)

    def all_serve(self, role: Role, model: str) -> bool:
        """As far as they list their models. Costs next to nothing."""
        common = self._common[role]
        return common is None or model in common

    def _compare(self, role: Role) -> None:
        lists = [engine.models for engine in self._engines[role].values() if engine.models is not None]
        self._common[role] = frozenset.intersection(*lists) if lists else None

    def check(self) -> None:
        """Asserts what must always hold, for tests."""
        for role, engines in self._engines.items():
            for address, engine in engines.items():
                assert (engine.role, engine.address) == (role, address)
                assert engine.requests >= 0
                assert engine.awaited >= 0
                assert engine.models is None or (self._common[role] or frozenset()) <= engine.models
                assert engine.prompt_tokens >= 0
                assert engine.requests > 0 or (engine.prompt_tokens == 0 and not engine.trial)


_DOUBTFUL, _OPEN, _SILENT, _NEVER = 1, 2, 3, 4


def _tier(engine: Engine, now: float) -> int:
    """0: all is well · a probe is unanswered · its breaker is open · it is silent · not to be asked."""
    if not engine.is_offered:
        return _NEVER
    if engine.health is Health.UP and (engine.open_until is None or (now >= engine.open_until and not engine.trial)):
        return _DOUBTFUL if engine.unanswered else 0
    if engine.role is Role.PREFILL:
        return _NEVER  # its work only helps: better to do without than to wait for it
    return _OPEN if engine.health is Health.UP else _SILENT
