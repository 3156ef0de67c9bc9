"""What is reported of each request when it is over: its line in the log (as JSON only), its spans (--otlp-endpoint)."""

import logging
import time
from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING, Final

from larder.errors import LarderError

from services.common.logs import FIELDS
from services.proxy.story import Ended, Story
from services.proxy.tracing import Trace, trace_of

if TYPE_CHECKING:
    from services.proxy.otlp import Exporter

logger = logging.getLogger(__name__)

_UNTOLD: Final = frozenset({"/health", "/ready", "/metrics"})  # asked all the time


class TracingUnavailable(LarderError):
    """The packages that send traces are not installed."""


class Telemetry:
    def __init__(self, *, logs_requests: bool, otlp_endpoint: str | None) -> None:
        """Raises TracingUnavailable."""
        self._logs_requests = logs_requests
        self._random = Random()  # noqa: S311 - ids tell spans apart
        self._exporter = None if otlp_endpoint is None else make_exporter(otlp_endpoint)

    def trace(self, headers: Mapping[str, str]) -> Trace | None:
        """The trace of a new request; None where none is to be recorded."""
        return None if self._exporter is None else trace_of(headers, self._random)

    def report(self, story: Story, ended: Ended) -> None:
        if ended.route in _UNTOLD:
            return
        if self._logs_requests:
            said = {"method": ended.method, "path": ended.path, "status": ended.status, "outcome": ended.outcome}
            logger.info("request", extra={FIELDS: {"request_id": story.id} | said | story.fields(time.monotonic())})
        if self._exporter is not None and story.trace is not None:
            self._exporter.export(story, story.trace, ended)

    async def close(self) -> None:
        if self._exporter is not None:
            await self._exporter.close()


def make_exporter(endpoint: str) -> "Exporter":
    """Sends traces to that collector. Raises TracingUnavailable."""
    try:
        from services.proxy.otlp import Exporter  # only here: it takes a tenth of a second, and an extra
    except ImportError as error:
        raise TracingUnavailable(
            f"--otlp-endpoint needs packages that are not installed ({error}): install larder-server[otel]"
        ) from error
    return Exporter(endpoint)
