"""Where a request stands in a trace, by W3C's traceparent. What is sent of it is the business of `telemetry`.

A client's trace is continued: the request is a span in it, each leg a span in that, and each engine is told its leg's.
A trace that the client does not sample is left alone, as all are without --otlp-endpoint: its headers go through.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class Trace:
    """A request's span. Ids are never 0, except the parent's where there is none."""

    trace_id: int
    parent_id: int
    span_id: int

    def leg_id(self, number: int) -> int:
        """The span id of the request's leg of that number, from 0 on."""
        return (self.span_id + 1 + number) % 2**64 or 1

    def traceparent(self, span_id: int) -> str:
        """For whoever is called within that span."""
        return f"00-{self.trace_id:032x}-{span_id:016x}-01"


def trace_of(headers: Mapping[str, str], random: Random) -> Trace | None:
    """The client's trace, continued, or a new one; None: the client says that its trace is not to be recorded."""
    trace_id = parent_id = 0
    match = _TRACEPARENT.fullmatch(headers.get(TRACEPARENT, ""))
    if match is not None and match[1] != "ff" and (match[1] != "00" or match[5] is None):
        trace_id, parent_id = int(match[2], 16), int(match[3], 16)
    if match is None or not trace_id or not parent_id:
        return Trace(random.getrandbits(128) or 1, 0, _new_id(random))
    return Trace(trace_id, parent_id, _new_id(random)) if int(match[4], 16) & 1 else None


def _new_id(random: Random) -> int:
    return random.getrandbits(64) or 1
