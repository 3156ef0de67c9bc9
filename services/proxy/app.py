"""The proxy's HTTP server: its parts, its routes, and the accounting of each request.

A request is read and understood (intake), waits for its turn (admission), and is carried out (exchange). No failure of
engines is ever passed off as a `200`: every error has its status and, in OpenAI's form, its reason. Keeps invariant 12
for its part.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from random import Random
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from services.common.version import VERSION
from services.proxy.admin import Admin
from services.proxy.admission import Admission, Overloaded
from services.proxy.broadcast import PATHS, Broadcast, engine_change
from services.proxy.config import ProxySettings
from services.proxy.core import paths
from services.proxy.core.engine import Handover, Role
from services.proxy.core.requests import BadRequest
from services.proxy.core.router import Router
from services.proxy.core.scheduling import make_policy
from services.proxy.cors import Cors
from services.proxy.discovery import Discovery
from services.proxy.engine_http.heads import is_websocket
from services.proxy.engine_http.upstream import Upstream
from services.proxy.errors import error_response
from services.proxy.exchange import Exchange
from services.proxy.health import HealthChecks
from services.proxy.intake import Intake, request_id
from services.proxy.members import Members
from services.proxy.models import Refusal, merged_models
from services.proxy.responses import Responses
from services.proxy.siblings import Siblings
from services.proxy.story import STORY, Ended, Story
from services.proxy.telemetry import Telemetry

logger = logging.getLogger(__name__)

DRAIN_S: Final = 25.0
_DOTS: Final = frozenset({".", ".."})
OUTCOME: Final = web.RequestKey("outcome", str)
"""What became of a request, where its handler knows more than the status tells."""
_METRICS_TYPE: Final = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}


class Proxy:
    """Holds the fleet and the way to it; make_app() makes the aiohttp application."""

    def __init__(
        self,
        settings: ProxySettings,
        upstream: Upstream,
        registry: CollectorRegistry,
        accepting: Callable[[], bool],
        siblings: Siblings | None = None,
    ) -> None:
        self._siblings = siblings
        self._settings = settings
        self._upstream = upstream
        self._registry = registry
        self._accepting = accepting
        self._telemetry = Telemetry(logs_requests=settings.log_format == "json", otlp_endpoint=settings.otlp_endpoint)
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.health = HealthChecks(settings, upstream, registry)
        self.fleet, self._metrics = self.health.fleet, self.health.metrics
        self.members = Members(settings, self.health, siblings)
        self.admin = Admin(self.members, self.health, upstream, settings, siblings)
        finds = bool(settings.discover) and (siblings is None or siblings.is_first)
        self._discovery = Discovery(settings.discover, self.members, registry) if finds else None
        self.responses = Responses(self.fleet, upstream, siblings)
        self._broadcast = Broadcast(self.fleet, upstream, seconds=settings.request_timeout)
        names = {Role.PREFILL: settings.prefill_scheduling, Role.DECODE: settings.decode_scheduling}
        self._random = Random()  # noqa: S311 - spreads load, and tells requests apart
        self.router = Router(
            self.fleet,
            {role: make_policy(name or settings.scheduling, self._random) for role, name in names.items()},
            None if settings.handover == "auto" else Handover(settings.handover),
        )
        self._admission = Admission(
            running_max=settings.max_concurrency, waiting_max=settings.max_queue, wait_s=settings.queue_timeout
        )
        self._intake = Intake(settings, upstream, self._admission, self.fleet, self.responses)
        self._cors = Cors(
            origins=settings.allowed_origins,
            methods=settings.allowed_methods,
            headers=settings.allowed_headers,
            credentials=settings.allow_credentials,
        )
        gauges = {
            "in_flight": ("Requests being answered", lambda: self._in_flight),
            "queue": ("Requests waiting for their turn", lambda: self._admission.waiting),
        }
        for name, (text, value) in gauges.items():
            Gauge(f"larder_proxy_{name}", text, registry=registry).set_function(value)

    def make_app(self) -> web.Application:
        app = web.Application(middlewares=[self._accounted])
        app.add_routes(
            [
                web.get("/health", self._get_health),
                web.get("/ready", self._get_ready),
                web.get("/metrics", self._get_metrics),
                web.get("/version", self._get_version),
                web.get("/v1/models", self._get_models),
                web.post("/v1/completions", self._generate),
                web.post("/v1/chat/completions", self._generate),
                *(web.route(method, path, self._forward) for path, method in paths.PASSED.items()),
                *(web.route("*", path, self._change_engines) for path in sorted(PATHS)),
                web.route("*", "/v1/{tail:.*}", self._forward),
            ]
        )
        self.admin.add_routes(app)
        app.on_response_prepare.append(self._mark)
        app.on_startup.append(self._start)
        app.on_shutdown.append(self._drain)
        return app

    async def _mark(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._cors.preflight(request.method, request.headers) is None:
            self._cors.mark(request.headers.get("Origin"), response.headers)

    async def _start(self, _: web.Application) -> None:
        if self._discovery is not None:
            await self._discovery.start()
        await self.admin.check()
        await self.health.start()  # so that the first requests know which engines are there

    async def _drain(self, _: web.Application) -> None:
        """Waits for the requests under way; by now no new ones are accepted."""
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("cut off %d requests that took over %g s to end", self._in_flight, DRAIN_S)
        if self._discovery is not None:
            await self._discovery.close()
        await self.members.close()
        await self.health.close()
        await self._telemetry.close()

    # -- handlers

    async def _get_health(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _get_ready(self, _: web.Request) -> web.Response:
        ready = self._accepting() and self.fleet.serves(Role.DECODE, time.monotonic())
        return web.Response(text="ready\n" if ready else "not ready\n", status=200 if ready else 503)

    async def _get_metrics(self, _: web.Request) -> web.Response:
        metrics = generate_latest(self._registry) if self._siblings is None else await self._siblings.metrics()
        return web.Response(body=metrics, headers=_METRICS_TYPE)

    async def _get_version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    async def _get_models(self, request: web.Request) -> web.Response:
        headers, _ = self._intake.headers(request, reads=True)
        await self._admission.enter()  # each asks all decode engines
        try:
            engines = self.fleet.listing(Role.DECODE, time.monotonic())
            models = await merged_models(self._upstream, [engine.address for engine in engines], headers)
        finally:
            self._admission.leave()
        if models is None:
            request[OUTCOME] = "unserved"
            return error_response(request, 503, "no decode engine lists its models")
        if isinstance(models, Refusal):
            request[OUTCOME] = "engine_error"
            return web.Response(status=models.status, body=models.body, content_type="application/json")
        return web.json_response(models)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, generates=True)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        if not _DOTS.isdisjoint(re.split(r"[/\\]", request.path)):  # what stands in front of an engine may follow them
            raise BadRequest(400, "the path has a . or .. in it, which leads elsewhere")
        if engine_change(request.path) is not None:
            return await self._change_engines(request)
        return await self._serve(request, generates=False)

    async def _change_engines(self, request: web.Request) -> web.StreamResponse:
        path = engine_change(request.path)
        if path is None or not self.admin.has_key(request):
            raise BadRequest(403, f"{request.path} changes engines: send ADMIN_API_KEY as X-API-Key")
        if request.method != "POST":
            raise web.HTTPMethodNotAllowed(request.method, ["POST"])
        _, lines = self._intake.headers(request, reads=True)
        body = await self._intake.body(request)
        try:
            return await self._broadcast.send(path, request.rel_url.raw_query_string, lines, body)
        finally:
            self._intake.let_go(body)
            self.health.list_soon()

    @web.middleware
    async def _accounted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Counts every request under its outcome, and gives every error its JSON."""
        request[STORY] = story = Story(request_id(request, self._random), self._telemetry.trace(request.headers))
        resource = request.match_info.route.resource
        path = resource.canonical if resource is not None else "other"
        outcome, code = "cancelled", 499
        weight = 1 if paths.is_under_way(path) else 0
        self._in_flight += weight
        if self._in_flight:
            self._idle.clear()
        try:
            response = await self._answered(request, handler)
            outcome, code = request.get(OUTCOME, "ok" if response.status < 400 else "refused"), response.status
            return response
        finally:
            self._in_flight -= weight
            if self._in_flight == 0:
                self._idle.set()
            self._metrics.ended(path, code, outcome)
            self._telemetry.report(story, Ended(request.method, path, request.path, code, outcome))

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if (preflight := self._cors.preflight(request.method, request.headers)) is not None:
                return web.Response(status=preflight.status, text=preflight.text, headers=preflight.headers)
            if is_websocket(request.headers):
                response = error_response(request, 501, "websockets are not passed on: connect to an engine itself")
                response.force_close()  # the client goes on in another protocol
                return response
            return await handler(request)
        except BadRequest as refusal:
            return error_response(request, refusal.status, str(refusal))
        except Overloaded as refusal:
            return error_response(request, 429, str(refusal))
        except web.HTTPException as refusal:
            response = error_response(request, refusal.status, f"{request.method} {request.path}: {refusal.reason}")
            if "Allow" in refusal.headers:
                response.headers["Allow"] = refusal.headers["Allow"]
            return response
        except ConnectionResetError:  # the client left while it was being written to
            raise asyncio.CancelledError from None
        except Exception:
            logger.exception("request %s failed because of a defect in the proxy", request[STORY].id)
            request[OUTCOME] = "internal"
            return error_response(request, 500, "the proxy failed; the reason is in its log")

    async def _serve(self, request: web.Request, *, generates: bool) -> web.StreamResponse:
        self._admission.check()
        call = await self._intake.call(request, generates=generates)
        try:
            await self._admission.enter()
            try:
                await self._intake.send_home(call)
                exchange = Exchange(call, self.router, self._upstream, self._metrics, self._settings)
                response, request[OUTCOME] = await exchange.run()
                return response
            finally:
                self._admission.leave()
        finally:
            self._intake.let_go(call.body)
