"""Traces: a span for each request, one for each leg, in the client's trace; a collector never holds a request up."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from services.proxy.telemetry import TracingUnavailable, make_exporter
from services.proxy.tracing import trace_of

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "vendor=1"}


class Collector:
    """An OTLP/HTTP receiver."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.hangs = False
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        if self.hangs:
            await asyncio.sleep(60)
        assert request.path == "/v1/traces"
        for group in ExportTraceServiceRequest.FromString(await request.read()).resource_spans:
            self.resources.append({each.key: each.value.string_value for each in group.resource.attributes})
            self.spans += [span for scope in group.scope_spans for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")

    async def named(self, *names: str) -> list[Any]:
        """The spans of these names, once all of them are there."""
        async with asyncio.timeout(10):
            while sorted(span.name for span in self.spans) != sorted(names):  # noqa: ASYNC110 - another server's
                await asyncio.sleep(0.02)
        return [next(span for span in self.spans if span.name == name) for name in names]


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/{tail:.*}", collector.take)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield collector
    await runner.cleanup()


async def ask(cluster: Any, headers: dict[str, str] | None = None) -> int:
    async with cluster.client.post(
        "/v1/completions", json={"stream": True, "prompt": "x"}, headers=headers
    ) as response:
        await response.read()
        status: int = response.status
        return status


def sent(engine: Any) -> tuple[str | None, str | None]:
    headers = engine.legs[-1].headers
    assert len(headers.getall("traceparent", [])) <= 1
    return headers.get("traceparent"), headers.get("tracestate")


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


async def test_a_clients_trace_is_continued_and_passed_on(start_cluster: Any, collector: Collector) -> None:
    cluster = await start_cluster(otlp_endpoint=collector.url)
    before = time.time_ns()
    assert await ask(cluster, SAMPLED | {"X-Request-Id": "abc"}) == 200
    request, prefill, decode = await collector.named("POST /v1/completions", "prefill", "decode")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    for span, engine in ((prefill, cluster.prefills[0]), (decode, cluster.decodes[0])):
        assert (span.trace_id, span.parent_span_id) == (request.trace_id, request.span_id)
        assert sent(engine) == (f"00-{TRACE_ID}-{span.span_id.hex()}-01", "vendor=1")
        host, _, port = engine.address.rpartition(":")
        assert attributes(span) == {"server.address": host, "server.port": int(port), "larder.outcome": "done"}
    assert len({request.span_id, prefill.span_id, decode.span_id}) == 3
    times = [request.start_time_unix_nano, prefill.start_time_unix_nano, prefill.end_time_unix_nano]
    times += [decode.start_time_unix_nano, decode.end_time_unix_nano, request.end_time_unix_nano]
    assert times == sorted(times)
    assert before - 1_000_000 <= times[0] <= times[-1] <= time.time_ns() + 1_000_000
    told = attributes(request)
    assert (told["larder.request_id"], told["larder.outcome"], told["http.response.status_code"]) == ("abc", "ok", 200)
    assert [event.name for event in request.events] == ["first byte"]
    assert collector.resources[0]["service.name"] == "larder-proxy"


async def test_without_a_clients_trace_a_new_one_begins(start_cluster: Any, collector: Collector) -> None:
    cluster = await start_cluster(otlp_endpoint=collector.url + "/")
    assert await ask(cluster, {"traceparent": "00-zz-1-01", "tracestate": "vendor=1"}) == 200
    request, prefill, _ = await collector.named("POST /v1/completions", "prefill", "decode")
    assert request.parent_span_id == b""
    assert any(request.trace_id)
    assert sent(cluster.prefills[0]) == (f"00-{request.trace_id.hex()}-{prefill.span_id.hex()}-01", None)


async def test_failed_legs_are_in_the_trace(start_cluster: Any, collector: Collector) -> None:
    cluster = await start_cluster(0, 1, otlp_endpoint=collector.url)
    cluster.decodes[0].act = cluster.decodes[0].answer_500
    assert await ask(cluster) == 500
    async with cluster.client.get("/health"), cluster.client.get("/metrics"):
        pass
    request, decode = await collector.named("POST /v1/completions", "decode")
    assert (decode.status.code, decode.status.message) == (2, "it answered 500")
    assert attributes(decode)["larder.outcome"] == "broken"
    assert (request.status.code, attributes(request)["larder.outcome"]) == (2, "engine_error")


@pytest.mark.parametrize("traced", [False, True])
async def test_an_unrecorded_trace_passes_untouched(start_cluster: Any, collector: Collector, traced: bool) -> None:
    cluster = await start_cluster(**({"otlp_endpoint": collector.url} if traced else {}))
    given = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00", "tracestate": "vendor=1"} if traced else SAMPLED
    assert await ask(cluster, given) == 200
    for engine in (cluster.prefills[0], cluster.decodes[0]):
        assert sent(engine) == (given["traceparent"], given["tracestate"])
    await cluster.stop()
    assert collector.spans == []


@pytest.mark.parametrize("how", ["hangs", "gone"])
async def test_a_hanging_or_missing_collector_holds_nothing_up(
    start_cluster: Any, collector: Collector, closed_port: str, how: str
) -> None:
    collector.hangs = True
    cluster = await start_cluster(otlp_endpoint=collector.url if how == "hangs" else f"http://{closed_port}")
    began = time.monotonic()
    for _ in range(100):
        assert await ask(cluster) == 200
    assert time.monotonic() - began < 10
    exporter = cluster.proxy._telemetry._exporter
    assert exporter._processor._batch_processor._queue.maxlen == 8192
    began = time.monotonic()
    await cluster.stop()
    assert time.monotonic() - began < 6
    sender = exporter._processor._batch_processor._worker_thread
    await asyncio.to_thread(sender.join, 60)  # its retries draw from `random`, which a later test may watch
    assert not sender.is_alive()


def test_without_the_packages_the_reason_is_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "services.proxy.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingUnavailable, match=r"install larder-server\[otel\]"):
        make_exporter("http://127.0.0.1:4318")


@pytest.mark.parametrize(
    ("header", "continued"),
    [
        (f"00-{TRACE_ID}-{PARENT_ID}-01", True),
        (f"cc-{TRACE_ID}-{PARENT_ID}-01-what-comes-later", True),
        (f"00-{TRACE_ID}-{PARENT_ID}-01-more", False),
        (f"ff-{TRACE_ID}-{PARENT_ID}-01", False),
        (f"00-{'0' * 32}-{PARENT_ID}-01", False),
        (f"00-{TRACE_ID}-{'0' * 16}-01", False),
        (f"00-{TRACE_ID.upper()}-{PARENT_ID}-01", False),
        ("", False),
    ],
)
def test_only_a_valid_traceparent_is_continued(header: str, continued: bool) -> None:
    trace = trace_of({"traceparent": header}, Random())
    assert trace is not None
    assert (trace.trace_id == int(TRACE_ID, 16)) is continued
    assert (trace.parent_id == int(PARENT_ID, 16)) is continued
