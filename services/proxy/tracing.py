"""Where a request stands in a trace, by W3C's traceparent; what is sent of it is the exporter's (otlp.py) business.

A client's trace is continued: the request is a span in it, each leg a span in that, and each engine is told its leg's.
A trace that the client does not sample is left alone, as all are without --otlp-endpoint: its headers go through.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

from larder.errors import LarderError

if TYPE_CHECKING:
    from services.proxy.otlp import Exporter

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TracingUnavailable(LarderError):
    """The packages that send traces are not installed."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A request's span; ids are never 0, but for the parent's where there is none."""

    trace_id: int
    parent_id: int
    span_id: int

    def leg_id(self, number: int) -> int:
        """Of the span of the request's leg of that number, from 0 on."""
        return (self.span_id + 1 + number) % 2**64 or 1

    def traceparent(self, span_id: int) -> str:
        """For who is called within that span."""
        return f"00-{self.trace_id:032x}-{span_id:016x}-01"


class Tracing:
    def __init__(self, exporter: "Exporter") -> None:
        self.exporter = exporter
        self._random = Random()  # noqa: S311 - ids tell spans apart

    def begin(self, headers: Mapping[str, str]) -> Trace | None:
        """None: the client says that its trace is not to be recorded."""
        trace_id = parent_id = 0
        match = _TRACEPARENT.fullmatch(headers.get(TRACEPARENT, ""))
        if match is not None and match[1] != "ff" and (match[1] != "00" or match[5] is None):
            trace_id, parent_id = int(match[2], 16), int(match[3], 16)
        if match is None or not trace_id or not parent_id:
            return Trace(self._random.getrandbits(128) or 1, 0, self._new_id())
        return Trace(trace_id, parent_id, self._new_id()) if int(match[4], 16) & 1 else None

    def _new_id(self) -> int:
        return self._random.getrandbits(64) or 1


def make_tracing(endpoint: str | None) -> Tracing | None:
    """None where no traces are sent. Raises TracingUnavailable."""
    if endpoint is None:
        return None
    try:
        from services.proxy.otlp import Exporter  # only here: it takes a tenth of a second, and an extra
    except ImportError as error:
        raise TracingUnavailable(
            f"--otlp-endpoint needs packages that are not installed ({error}): install larder-server[otel]"
        ) from error
    return Tracing(Exporter(endpoint))
