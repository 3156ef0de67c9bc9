"""What became of one request: noted as it goes its way, told when it is over. Never its prompt, never a key."""

import time
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from services.proxy.core.fleet import Address, Role

CANCELLED: Final = "cancelled"
DONE: Final = "done"


@dataclass(slots=True)
class LegNote:
    """One leg. Times are by time.monotonic."""

    role: Role
    to: Address
    began: float
    ended: float = 0.0
    outcome: str = CANCELLED  # unless something else is said
    reason: str = ""

    def end(self, outcome: str, reason: str) -> None:
        self.ended, self.outcome, self.reason = time.monotonic(), outcome, reason


@dataclass(slots=True)
class Story:
    began: float = field(default_factory=time.monotonic)
    legs: list[LegNote] = field(default_factory=list)
    prompt_tokens: int = 0  # estimated
    first_byte_at: float | None = None
    bytes: int = 0  # of the answer's body, as passed on

    def leg(self, role: Role, to: Address) -> LegNote:
        """A leg begins."""
        note = LegNote(role, to, time.monotonic())
        self.legs.append(note)
        return note

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
        }


STORY: Final = web.RequestKey("story", Story)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
