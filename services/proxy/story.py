"""What became of one request: noted on its way, reported when it is over. Never its prompt, never a key."""

import time
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from aiohttp import web
from multidict import CIMultiDict

from services.proxy.core.engine import Address, Role
from services.proxy.tracing import TRACEPARENT, TRACESTATE, Trace

CANCELLED: Final = "cancelled"
DONE: Final = "done"


@dataclass(slots=True)
class LegNote:
    """One leg. Times are by time.monotonic."""

    role: Role
    to: Address
    began: float
    ended: float = 0.0
    outcome: str = CANCELLED  # unless end() says otherwise
    reason: str = ""
    span_id: int = 0  # in the request's trace

    def end(self, outcome: str, reason: str) -> None:
        self.ended, self.outcome, self.reason = time.monotonic(), outcome, reason


class Waits:
    """A context for every wait for somebody else; waits that overlap count once."""

    __slots__ = ("_began", "_count", "_ended_s")

    def __init__(self) -> None:
        self._count = 0
        self._began = self._ended_s = 0.0

    def __enter__(self) -> None:
        if not self._count:
            self._began = time.monotonic()
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._ended_s += time.monotonic() - self._began

    def seconds(self, now: float) -> float:
        """All of them until now."""
        return self._ended_s + (now - self._began if self._count else 0.0)


@dataclass(slots=True)
class Story:
    id: str
    trace: Trace | None = None
    began: float = field(default_factory=time.monotonic)
    waits: Waits = field(default_factory=Waits)  # for the engines, and for the rest of the request
    legs: list[LegNote] = field(default_factory=list)
    prompt_tokens: int = 0  # estimated
    first_byte_at: float | None = None
    bytes: int = 0  # of the answer's body, as passed on

    def leg(self, role: Role, to: Address) -> LegNote:
        """A leg begins."""
        note = LegNote(role, to, time.monotonic())
        if self.trace is not None:
            note.span_id = self.trace.leg_id(len(self.legs))
        self.legs.append(note)
        return note

    def own_s(self, now: float) -> float:
        """The proxy's own part of the time since the request came."""
        return now - self.began - self.waits.seconds(now)

    def headers(self, headers: CIMultiDict[str], leg: LegNote) -> CIMultiDict[str]:
        """The headers with the leg's place in the trace; the same object where there is no trace."""
        if self.trace is None:
            return headers
        told = headers.copy()
        told[TRACEPARENT] = self.trace.traceparent(leg.span_id)
        if not self.trace.parent_id:
            told.popall(TRACESTATE, None)  # it belongs to no trace
        return told

    def fields(self, now: float) -> dict[str, Any]:
        """What a log line says of it."""
        prefills = [leg for leg in self.legs if leg.role is Role.PREFILL]
        prefilled = [leg.to for leg in prefills if leg.outcome == DONE]
        decodes = [leg.to for leg in self.legs if leg.role is Role.DECODE]
        first_s = None if self.first_byte_at is None else self.first_byte_at - self.began
        return {
            "prefill": prefilled[-1] if prefilled else None,
            "decode": decodes[-1] if decodes else None,
            "retries": sum(leg.outcome not in (DONE, CANCELLED) for leg in self.legs),
            "prompt_tokens": self.prompt_tokens,
            "ms": _ms(now - self.began),
            "prefill_ms": _ms(sum((leg.ended or now) - leg.began for leg in prefills)) if prefills else None,
            "first_byte_ms": None if first_s is None else _ms(first_s),
            "bytes": self.bytes,
        } | ({} if self.trace is None else {"trace_id": f"{self.trace.trace_id:032x}"})


class Ended(NamedTuple):
    """How a request ended. Route: one of this proxy's, of which there are few; path: what the client asked for."""

    method: str
    route: str
    path: str
    status: int
    outcome: str  # one of those that `metrics` lists


STORY: Final = web.RequestKey("story", Story)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
