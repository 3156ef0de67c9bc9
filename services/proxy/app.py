"""The proxy's HTTP server: reads a request, carries out what its Route decides, passes the decode engine's answer on.

Nothing reaches the client before the decode engine's first byte is there, so until then another engine can be asked;
after it a failure ends the stream with an error event. Bytes are passed as they come. A client that leaves cancels its
handler, and with it the legs under way. Failing engines never make it a `200`: every error has its status and, in
OpenAI's shape, its reason. Keeps invariants 12 and 16 for its part.
"""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry, generate_latest

from services.proxy.admin import Admin
from services.proxy.config import ProxySettings
from services.proxy.core.legs import BadRequest, parse_request, prefill_request
from services.proxy.core.routing import (
    Address,
    Decision,
    Decode,
    Finished,
    Outcome,
    Prefill,
    Role,
    Route,
    RoutingTable,
    Unserved,
)
from services.proxy.metrics import Metrics
from services.proxy.upstream import Answer, LegFailed, Upstream, end_to_end

logger = logging.getLogger(__name__)

BODY_BYTES_MAX: Final = 64 << 20
IN_FLIGHT_MAX: Final = 4096
DRAIN_S: Final = 25.0
_BODY_S: Final = 60.0
_LAST_WORD_S: Final = 2.0
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OUTCOME: Final = web.RequestKey("outcome", str)
_ID: Final = web.RequestKey("id", str)
_METRICS_TYPE: Final = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}


@dataclass(slots=True)
class Call:
    """One request of a client, read and understood."""

    request: web.Request
    body: bytes
    prefill_body: bytes
    streamed: bool
    repeatable: bool
    headers: CIMultiDict[str]
    started: float
    response: web.StreamResponse | None = None
    alone: bool = False


class Proxy:
    """Holds the routes' table and the way upstream; make_app() gives the aiohttp application."""

    def __init__(
        self, settings: ProxySettings, upstream: Upstream, registry: CollectorRegistry, accepting: Callable[[], bool]
    ) -> None:
        self._settings = settings
        self._upstream = upstream
        self._registry = registry
        self._accepting = accepting
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.table = RoutingTable(
            tuple(Address(address) for address in settings.prefill),
            tuple(Address(address) for address in settings.decode),
        )
        self._metrics = Metrics(registry, self.table)
        self._metrics.in_flight.set_function(lambda: self._in_flight)

    def make_app(self) -> web.Application:
        app = web.Application(middlewares=[self._accounted], client_max_size=BODY_BYTES_MAX)
        app.add_routes(
            [
                web.get("/health", self._get_health),
                web.get("/ready", self._get_ready),
                web.get("/metrics", self._get_metrics),
                web.post("/v1/completions", self._generate),
                web.post("/v1/chat/completions", self._generate),
                web.route("*", "/v1/{tail:.*}", self._forward),
            ]
        )
        Admin(self.table, self._upstream, self._settings).add_routes(app)
        app.on_shutdown.append(self._drain)
        return app

    async def _drain(self, _: web.Application) -> None:
        """Waits for the requests under way; by now no new ones are taken."""
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("cut off %d requests that took over %g s to end", self._in_flight, DRAIN_S)

    # -- handlers

    async def _get_health(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _get_ready(self, _: web.Request) -> web.Response:
        ready = self._accepting() and bool(self.table.engines(Role.DECODE))
        return web.Response(text="ready\n" if ready else "not ready\n", status=200 if ready else 503)

    async def _get_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers=_METRICS_TYPE)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        call = await self._read(request)
        asked = parse_request(request.content_type, call.body)
        leg = prefill_request(asked, chat=request.path.endswith("/chat/completions"))
        call.prefill_body = json.dumps(leg, separators=(",", ":")).encode() if self.table.engines(Role.PREFILL) else b""
        call.streamed = asked.get("stream") is True
        call.repeatable = True
        return await self._serve(call)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        call = await self._read(request)
        call.repeatable = request.method in _SAFE_METHODS
        return await self._serve(call)

    @web.middleware
    async def _accounted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Counts every request under its outcome, and gives every error its JSON."""
        request[_ID] = request.headers.get("X-Request-Id") or uuid.uuid4().hex
        resource = request.match_info.route.resource
        path = resource.canonical if resource is not None else "other"
        outcome, code = "cancelled", 499
        weight = 1 if path.startswith("/v1/") else 0  # operators' requests are never too many, nor waited for
        self._in_flight += weight
        if self._in_flight:
            self._idle.clear()
        try:
            response = await self._answered(request, handler)
            outcome, code = request.get(_OUTCOME, "ok" if response.status < 400 else "refused"), response.status
            return response
        finally:
            self._in_flight -= weight
            if self._in_flight == 0:
                self._idle.set()
            self._metrics.requests.labels(path, str(code), outcome).inc()

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if self._in_flight > IN_FLIGHT_MAX and request.path.startswith("/v1/"):
                return _error(request, 429, f"{IN_FLIGHT_MAX} requests are being answered already; retry later")
            return await handler(request)
        except BadRequest as refusal:
            return _error(request, refusal.status, str(refusal))
        except web.HTTPRequestEntityTooLarge:
            return _error(request, 413, f"the request body is over {BODY_BYTES_MAX} bytes")
        except web.HTTPException as refusal:
            response = _error(request, refusal.status, f"{request.method} {request.path}: {refusal.reason}")
            if "Allow" in refusal.headers:
                response.headers["Allow"] = refusal.headers["Allow"]
            return response
        except ConnectionResetError:  # the client left while it was being written to
            raise asyncio.CancelledError from None
        except Exception:
            logger.exception("request %s failed for a defect of the proxy", request[_ID])
            request[_OUTCOME] = "internal"
            return _error(request, 500, "the proxy failed; the reason is in its log")

    # -- a request's way

    async def _read(self, request: web.Request) -> Call:
        started = time.monotonic()
        if (request.content_length or 0) > BODY_BYTES_MAX:
            raise web.HTTPRequestEntityTooLarge(BODY_BYTES_MAX, request.content_length or 0)
        headers = end_to_end(request.headers)
        for name in ("Host", "Content-Length", "Expect"):
            headers.popall(name, None)
        headers["X-Request-Id"] = request[_ID]
        if not all(_is_text(value) for value in headers.values()):
            raise BadRequest(400, "a header is not UTF-8 text")
        try:
            async with asyncio.timeout(_BODY_S):
                body = await request.read()
        except TimeoutError as error:
            raise BadRequest(408, f"the request body did not arrive within {_BODY_S:g} s") from error
        except web.RequestPayloadError as error:
            raise BadRequest(400, f"the request body is malformed: {error}") from error
        return Call(request, body, b"", False, False, headers, started)

    async def _serve(self, call: Call) -> web.StreamResponse:
        limit_s = self._settings.request_timeout
        try:
            async with asyncio.timeout(limit_s - (time.monotonic() - call.started)):
                return await self._follow(
                    call, self.table.begin(prefill=bool(call.prefill_body), repeatable=call.repeatable)
                )
        except TimeoutError:
            message = f"the request was not answered within {limit_s:g} s"
            return await self._fail(call, 504, message, outcome="timed_out")
        except LegFailed as failure:
            return await self._fail(call, 502, f"the decode engine broke off its answer: {failure}", outcome="broken")

    async def _follow(self, call: Call, route: Route) -> web.StreamResponse:
        decision: Decision = route.step()
        while True:
            match decision:
                case Prefill(to):
                    outcome = await self._prefill(call, to)
                case Decode(to, alone):
                    call.alone = alone
                    outcome = await self._decode(call, to)
                case Finished():
                    if call.response is None:
                        raise RuntimeError("the route finished without an answer")
                    return call.response
                case Unserved():
                    return await self._unserved(call, decision)
            decision = route.step(outcome)

    async def _prefill(self, call: Call, to: Address) -> Outcome:
        started = time.monotonic()
        outcome, reason = Outcome.DONE, ""
        try:
            async with asyncio.timeout(self._settings.first_token_timeout):
                with contextlib.closing(await self._send(call, to, call.prefill_body, first_byte_s=None)) as answer:
                    await answer.drain()
                    if answer.status >= 500 or 300 <= answer.status < 400:
                        outcome, reason = Outcome.BROKEN, f"it answered {answer.status}"
        except LegFailed as failure:
            outcome, reason = failure.outcome, str(failure)
        except TimeoutError:
            outcome, reason = Outcome.TIMED_OUT, "no answer in time"
        self._leg_ended(call, Role.PREFILL, to, outcome, reason, started)
        return outcome

    async def _decode(self, call: Call, to: Address) -> Outcome:
        started = time.monotonic()
        try:
            first_byte_s = self._settings.first_token_timeout if call.streamed else None
            answer = await self._send(call, to, call.body, first_byte_s=first_byte_s)
            with contextlib.closing(answer):
                if not answer.first and answer.status == 200 and call.request.method == "POST":
                    raise LegFailed(Outcome.BROKEN, "it answered 200 without a body")
                if call.streamed:
                    self._metrics.ttft_seconds.observe(time.monotonic() - call.started)
                await self._pass_on(call, answer)
        except LegFailed as failure:
            self._leg_ended(call, Role.DECODE, to, failure.outcome, str(failure), started)
            if call.response is not None:
                raise
            return failure.outcome
        self._leg_ended(call, Role.DECODE, to, Outcome.DONE, "", started)
        return Outcome.DONE

    async def _send(self, call: Call, to: Address, body: bytes, *, first_byte_s: float | None) -> Answer:
        return await self._upstream.send(
            to,
            method=call.request.method,
            target=call.request.rel_url.raw_path_qs,
            headers=call.headers,
            body=body,
            repeatable=call.repeatable,
            first_byte_s=first_byte_s,
        )

    async def _pass_on(self, call: Call, answer: Answer) -> None:
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=answer.headers)
        response.headers.setdefault("X-Request-Id", call.request[_ID])
        call.request[_OUTCOME] = "engine_error" if answer.status >= 400 else "decode_alone" if call.alone else "ok"
        call.response = response
        await response.prepare(call.request)
        chunk = answer.first
        while chunk:
            await response.write(chunk)
            chunk = await answer.read()
        await response.write_eof()

    # -- how it can end badly

    async def _unserved(self, call: Call, decision: Unserved) -> web.StreamResponse:
        if decision.may_have_run:
            message = f"decode engine {decision.failed[-1]} broke off before it answered; the request may have run"
            return await self._fail(call, 502, message, outcome="unserved")
        tried = f"none of {', '.join(decision.failed)} answered" if decision.failed else "there is none"
        return await self._fail(call, 503, f"no decode engine is available: {tried}", outcome="unserved")

    async def _fail(self, call: Call, status: int, message: str, *, outcome: str) -> web.StreamResponse:
        """An error before the first byte has its status; after it, it ends the stream or breaks the connection."""
        logger.warning("request %s: %s", call.request[_ID], message)
        call.request[_OUTCOME] = outcome
        response = call.response
        if response is None:
            return _error(call.request, status, message)
        reads = not call.request.protocol.writing_paused  # a client that does not read has no need of an event
        if reads and response.content_type == "text/event-stream" and response.content_length is None:
            event = json.dumps(_error_object(status, message))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORD_S):
                    await response.write(f"\n\ndata: {event}\n\n".encode())  # the blank line ends what was cut
                    await response.write_eof()
                    return response
        if call.request.transport is not None:
            call.request.transport.abort()  # so that a part is not taken for the whole
        return response

    def _leg_ended(self, call: Call, role: Role, to: Address, outcome: Outcome, reason: str, started: float) -> None:
        self._metrics.leg_seconds[role].labels(outcome.value).observe(time.monotonic() - started)
        if outcome is not Outcome.DONE and call.response is None:
            self._metrics.retries.labels(role.value, outcome.value).inc()
            logger.warning("request %s: %s engine %s failed: %s", call.request[_ID], role.value, to, reason)


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\udc80" <= character <= "\udcff" for character in value)


def _error_object(status: int, message: str) -> dict[str, object]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _error(request: web.Request, status: int, message: str) -> web.Response:
    headers = {"X-Request-Id": request[_ID]} | ({"Retry-After": "1"} if status in (429, 503) else {})
    return web.json_response(_error_object(status, message), status=status, headers=headers)
