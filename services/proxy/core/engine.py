"""One engine of one role: its address, what is known of it, and how it is faring. Fleet keeps and changes it.

breaker: closed ──3 failures in a row──▶ open ──after a while, doubling──▶ half open ──an answer──▶ closed
                                          ▲──────────a failure──────────────┘      (one leg at a time)
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final, NewType

Address = NewType("Address", str)
"""Of an engine's HTTP server, as `endpoint` reads it: HOST:PORT, or https://HOST:PORT, and perhaps /BASE."""

OPEN_S: Final = 1.0  # a breaker's first time; twice as long each time


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


class Handover(StrEnum):
    """How the KV gets from the prefill engine to the decode engine."""

    STORE = "store"  # through a store, found there by content: first the prefill, then the request as it came
    PULL = "pull"  # the decode engine fetches it: the prefill's answer says where (kv_transfer_params)
    PUSH = "push"  # both legs at once; the prefill engine sends it under a transfer id
    NONE = "none"  # not at all: the decode engine computes the prompt


class Health(StrEnum):
    UP = "up"
    SILENT = "silent"  # takes connections or drops them, and does not answer: asked only where nobody else is left
    GONE = "gone"  # refuses connections, or says itself that it is dead


class Breaker(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Probe(Enum):
    """What came of asking for an engine's health."""

    OK = "ok"
    REFUSED = "refused"  # no connection, or an answer that says it is dead
    NO_CONNECTION = "no_connection"  # in time, or none that carried anything
    NO_ANSWER = "no_answer"  # it took the connection, and is silent


class Change(StrEnum):
    """What happened to an engine, as told to Fleet's listener."""

    LOST = "lost"  # it does not answer any more
    BACK = "back"
    OPENED = "opened"  # the breaker
    CLOSED = "closed"


@dataclass(slots=True, eq=False)
class Engine:
    """One engine in one role. Only Fleet changes it."""

    role: Role
    address: Address
    health: Health = Health.UP
    draining: bool = False
    requests: int = 0  # legs under way
    awaited: int = 0  # prefills that are done, and whose KV no decode engine has answered from yet
    prompt_tokens: int = 0  # of the legs under way
    failures: int = 0  # legs in a row that failed
    unanswered: int = 0  # probes in a row
    is_mute: bool = False  # one of them was on a connection that it took
    is_frozen: bool = False  # as probed() said
    open_until: float | None = None  # the breaker's; None: closed
    open_s: float = OPEN_S
    trial: bool = False  # half open, and a leg is finding out
    said_at: float | None = None  # misfit() said that it was to be said
    handover: Handover | None = None  # a prefill engine's; None: not known yet
    transfer_ids: tuple[str, ...] = ()  # by data-parallel rank: what PUSH calls the engine
    models: frozenset[str] | None = None  # what it lists, adapters among them; None: not known

    @property
    def is_offered(self) -> bool:
        return not self.draining and self.health is not Health.GONE

    def may_serve(self, model: str) -> bool:
        """As far as is known. A decode engine that nobody ever reached does not, so that the others can say what is."""
        if self.models is None:
            return self.role is Role.PREFILL or self.health is not Health.GONE
        return model in self.models

    @property
    def load(self) -> int:
        """What least_loaded compares: tokens to prefill, requests to decode."""
        return self.prompt_tokens if self.role is Role.PREFILL else self.requests

    def breaker(self, now: float) -> Breaker:
        if self.open_until is None:
            return Breaker.CLOSED
        return Breaker.OPEN if now < self.open_until else Breaker.HALF_OPEN


@dataclass(slots=True, eq=False)
class Booking:
    """A leg's place in an engine's load, from pick() to ended()."""

    engine: Engine
    prompt_tokens: int
    trial: bool
    health: Health  # when it was sent
    open: bool = field(default=True)
