"""Sends what became of requests to an OpenTelemetry collector, by OTLP over HTTP. The only module that knows the SDK.

Spans are made when a request is over and put into a bounded queue; a thread sends them. A collector that is slow or
gone costs spans, never requests. OTEL_EXPORTER_OTLP_HEADERS, OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME are read.
"""

import asyncio
import os
import sys
import threading
import time
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from services.common.version import VERSION
from services.proxy.core.endpoint import endpoint_of
from services.proxy.story import DONE, Ended, LegNote, Story
from services.proxy.tracing import Trace

_QUEUE_MAX: Final = 8192  # spans
_BATCH_MAX: Final = 256
_SEND_EVERY_MS: Final = 1000.0
_SEND_S: Final = 5.0
_LAST_S: Final = 3.0  # for what is in the queue at the end
_REASON_MAX: Final = 256
_SCOPE: Final = InstrumentationScope("larder.proxy", VERSION)
_UNSET: Final = Status(StatusCode.UNSET)


class Exporter:
    def __init__(self, endpoint: str) -> None:
        """The collector's URL; /v1/traces is added where it has no path."""
        url = endpoint if urlsplit(endpoint).path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
        name = os.environ.get("OTEL_SERVICE_NAME", "larder-proxy")
        self._resource = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: VERSION})
        self._processor = BatchSpanProcessor(
            OTLPSpanExporter(endpoint=url, timeout=_SEND_S),
            max_queue_size=_QUEUE_MAX,
            max_export_batch_size=_BATCH_MAX,
            schedule_delay_millis=_SEND_EVERY_MS,
        )
        sys.setswitchinterval(0.0005)  # how long the thread that encodes spans may hold up requests

    def export(self, story: Story, trace: Trace, ended: Ended) -> None:
        """The request's span and its legs'. Returns at once."""
        now, offset_ns = time.monotonic(), time.time_ns() - time.monotonic_ns()
        own = _context(trace.trace_id, trace.span_id)
        fields = story.fields(now)
        for leg in story.legs:
            self._processor.on_end(self._leg(leg, own, now, offset_ns))
        first = (
            () if story.first_byte_at is None else (Event("first byte", timestamp=_ns(story.first_byte_at, offset_ns)),)
        )
        is_failure = ended.status >= 500 or ended.outcome == "broken"
        span = ReadableSpan(
            name=f"{ended.method} {ended.route}",
            context=own,
            parent=_context(trace.trace_id, trace.parent_id) if trace.parent_id else None,
            resource=self._resource,
            attributes={
                "http.request.method": ended.method,
                "http.route": ended.route,
                "url.path": ended.path,
                "http.response.status_code": ended.status,
                "larder.request_id": story.id,
                "larder.outcome": ended.outcome,
                "larder.retries": fields["retries"],
                "larder.prompt_tokens": story.prompt_tokens,
                "larder.answer_bytes": story.bytes,
            },
            events=first,
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR, ended.outcome) if is_failure else _UNSET,
            start_time=_ns(story.began, offset_ns),
            end_time=_ns(now, offset_ns),
            instrumentation_scope=_SCOPE,
        )
        self._processor.on_end(span)

    async def close(self) -> None:
        """Sends what is left, for a while."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, daemon=True).start()  # the loop waits for threads of its own
        try:
            async with asyncio.timeout(_LAST_S):
                await done.wait()
        except TimeoutError:
            pass

    def _leg(self, leg: LegNote, parent: SpanContext, now: float, offset_ns: int) -> ReadableSpan:
        to = endpoint_of(leg.to)
        failed = leg.outcome != DONE and bool(leg.reason)
        return ReadableSpan(
            name=leg.role.value,
            context=_context(parent.trace_id, leg.span_id),
            parent=parent,
            resource=self._resource,
            attributes={"server.address": to.name, "server.port": to.port, "larder.outcome": leg.outcome},
            kind=SpanKind.CLIENT,
            status=Status(StatusCode.ERROR, leg.reason[:_REASON_MAX]) if failed else _UNSET,
            start_time=_ns(leg.began, offset_ns),
            end_time=_ns(leg.ended or now, offset_ns),
            instrumentation_scope=_SCOPE,
        )


def _context(trace_id: int, span_id: int) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _ns(monotonic_s: float, offset_ns: int) -> int:
    return int(monotonic_s * 1e9) + offset_ns
