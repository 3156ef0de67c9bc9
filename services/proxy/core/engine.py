"""One engine in one role: its address, what is known of it, and how it is doing. Fleet keeps and changes it.

breaker: closed ──3 failures in a row──▶ open ──after a while, doubling──▶ half open ──an answer──▶ closed
                                          ▲──────────a failure──────────────┘      (one leg at a time)
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final, NewType

Address = NewType("Address", str)
"""Of an engine's HTTP server, as `endpoint` writes it: HOST:PORT or https://HOST:PORT, and perhaps /BASE."""

OPEN_S: Final = 1.0  # a breaker's first time open, which doubles each time


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


class Handover(StrEnum):
    """How the KV gets from the prefill engine to the decode engine."""

    STORE = "store"  # through a store, found by content: first the prefill, then the request as it came
    PULL = "pull"  # the decode engine fetches it: the prefill's answer says where (kv_transfer_params)
    PUSH = "push"  # both legs at once; the prefill engine sends it under a transfer id
    NONE = "none"  # not at all: the decode engine computes the prompt


class Health(StrEnum):
    UP = "up"
    SILENT = "silent"  # accepts or drops connections, and does not answer: asked only if no other is left
    GONE = "gone"  # refuses connections, or says that it is dead


class Breaker(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Probe(Enum):
    """What came of asking for an engine's health."""

    OK = "ok"
    REFUSED = "refused"  # no connection, or an answer that says it is dead
    NO_CONNECTION = "no_connection"  # within the time, or none that carried anything
    NO_ANSWER = "no_answer"  # it accepted the connection, and is silent


class Change(StrEnum):
    """What happened to an engine; Fleet tells its listener."""

    LOST = "lost"  # it no longer answers
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
    awaited: int = 0  # finished prefills whose KV no decode engine has answered from yet
    prompt_tokens: int = 0  # of the legs under way
    failures: int = 0  # failed legs in a row
    unanswered: int = 0  # unanswered probes in a row
    is_mute: bool = False  # it had accepted the connection of one of them
    is_frozen: bool = False  # as probed() said
    open_until: float | None = None  # the breaker's; None: closed
    open_s: float = OPEN_S
    trial: bool = False  # half open, and a leg is trying it
    said_at: float | None = None  # when misfit() last said to report it
    handover: Handover | None = None  # a prefill engine's; None: not known yet
    transfer_ids: tuple[str, ...] = ()  # by data-parallel rank: what PUSH calls the engine
    models: frozenset[str] | None = None  # that it lists, adapters included; None: not known

    @property
    def is_offered(self) -> bool:
        return not self.draining and self.health is not Health.GONE

    def may_serve(self, model: str) -> bool:
        """As far as is known. A decode engine that was never reached does not, so that the others can answer."""
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
    """A leg's share of an engine's load, from Fleet.book() to Fleet.ended()."""

    engine: Engine
    prompt_tokens: int
    trial: bool
    health: Health  # when it was sent
    open: bool = field(default=True)
