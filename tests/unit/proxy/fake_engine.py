"""A small engine that speaks vLLM's HTTP over real sockets and misbehaves on request, and a prefill engine's bootstrap
server.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from multidict import CIMultiDictProxy

EVENTS = [b'data: {"token": %d}\n\n' % number for number in range(3)] + [b"data: [DONE]\n\n"]


@dataclass
class Leg:
    """One request as an engine received it."""

    method: str
    path: str
    headers: CIMultiDictProxy[str]
    body: bytes
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Engine:
    """Answers as vLLM does; `act` misbehaves in its place."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.legs: list[Leg] = []
        self.probes = 0
        self.listings: list[CIMultiDictProxy[str]] = []  # how the proxy asked for its models
        self.act: Callable[[web.Request], Awaitable[web.StreamResponse]] = self.answer
        self.list_models: Callable[[web.Request], Awaitable[web.StreamResponse]] = self.answer  # to the proxy itself
        self.models = ["tiny"]
        self.healthy = True
        self.frozen = False  # answers no probes
        self.params: dict[str, Any] | None = None  # kv_transfer_params of its answers to prefills, as NIXL's
        self.next_event = asyncio.Semaphore(1000)  # a test that replaces it holds the stream back
        self.called = asyncio.Event()
        self.address = ""
        self.end: Callable[[], Awaitable[None]]
        self.stop_listening: Callable[[], Awaitable[None]]

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator["Engine"]:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, host, port)
        await site.start()
        self.stop_listening = site.stop
        self.address = f"{host}:{runner.addresses[0][1]}"
        self.end = runner.cleanup
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/health":
            self.probes += 1
            if self.frozen:
                await self.hang(request)
            return web.Response(status=200 if self.healthy else 503)
        if request.path == "/v1/models" and "X-Request-Id" not in request.headers:  # the proxy's own
            self.listings.append(request.headers)
            return await self.list_models(request)
        leg = Leg(request.method, request.path_qs, request.headers, await request.read())
        self.legs.append(leg)
        self.called.set()
        try:
            return await self.act(request)
        except asyncio.CancelledError:
            leg.cancelled = True
            raise
        finally:
            leg.ended.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            data = [{"id": model, "object": "model"} for model in self.models]
            return web.json_response({"object": "list", "data": data})
        if request.method != "POST":
            return web.json_response({"path": request.path_qs, "by": self.name})
        asked = await request.json() if (await request.read())[:1] == b"{" else {}
        if asked.get("stream"):
            return await self.stream(request)
        answer = {"by": self.name, "choices": [{"text": "é"}]}
        if self.params is not None and asked.get("kv_transfer_params", {}).get("do_remote_decode"):
            answer["kv_transfer_params"] = self.params
        return web.json_response(answer, headers={"X-Engine": self.name})

    async def stream(self, request: web.Request, *, events: int = len(EVENTS)) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for event in EVENTS[:events]:
            await self.next_event.acquire()
            await response.write(event)
        return response

    # -- what can go wrong

    async def answer_500(self, _: web.Request) -> web.StreamResponse:
        return self._boom(500)

    async def answer_429(self, _: web.Request) -> web.StreamResponse:
        return self._boom(429)

    def _boom(self, status: int) -> web.Response:
        error = {"error": {"message": "boom", "by": self.name}}
        return web.json_response(error, status=status, headers={"X-Engine": self.name})

    async def error_first(self, request: web.Request, *, code: int = 500) -> web.StreamResponse:
        """As vLLM reports that KV could not be loaded: in the first event, or by its status if nothing is streamed."""
        if not (await request.json()).get("stream"):
            return self._boom(code)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        error = json.dumps({"error": {"message": f"boom: {self.name}", "code": code}})
        await response.write(f"data: {error}\n\ndata: [DONE]\n\n".encode())
        return response

    async def answer_400(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "bad temperature", "by": self.name}}, status=400)

    async def answer_nothing(self, _: web.Request) -> web.StreamResponse:
        return web.Response()

    async def redirect(self, _: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "http://127.0.0.1:9/v1/completions"}, text="elsewhere")

    async def hang(self, _: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    async def reset(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def garbage(self, request: web.Request) -> web.StreamResponse:
        return await self._raw(request, b"\x00\x01 what is this\r\n\r\n")

    async def latin_1_header(self, request: web.Request) -> web.StreamResponse:
        return await self._raw(request, b"HTTP/1.1 200 Tr\xe8s bien\r\nX-Odd: caf\xe9\r\nContent-Length: 2\r\n\r\n{}")

    async def garbage_chunk(self, request: web.Request) -> web.StreamResponse:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        return await self._raw(request, head + b"no number\r\n" + EVENTS[0])

    async def garbage_later(self, request: web.Request) -> web.StreamResponse:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        await self._raw(request, head + b"%x\r\n%b\r\n" % (len(EVENTS[0]), EVENTS[0]), close=False)
        await asyncio.sleep(0.1)
        return await self._raw(request, b"no number\r\n" + EVENTS[1])

    async def _raw(self, request: web.Request, content: bytes, *, close: bool = True) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(content)  # type: ignore[attr-defined]
        if close:
            request.transport.close()
        return web.Response()

    async def trickle(self, request: web.Request) -> web.StreamResponse:
        """Its first event takes 6 s."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(60):
            await response.write(b":")
            await asyncio.sleep(0.1)
        return response

    async def close_before_first_byte(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"")
        return await self.reset(request)

    async def break_off(self, request: web.Request) -> web.StreamResponse:
        await self.stream(request, events=2)
        await asyncio.sleep(0.1)  # so that both events are on their way
        return await self.reset(request)

    async def break_off_json(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"choices": [')
        await asyncio.sleep(0.1)
        return await self.reset(request)


class Bootstrap:
    """The bootstrap server beside a prefill engine with a MooncakeConnector."""

    def __init__(self, *engine_ids: str) -> None:
        self.engine_ids = engine_ids
        self.queries = 0
        self.port = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Bootstrap"]:
        app = web.Application()
        app.router.add_get("/query", self._query)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _query(self, _: web.Request) -> web.Response:
        self.queries += 1
        workers = {"0": {"0": "tcp://10.1.2.3:6000"}}
        return web.json_response(
            {str(rank): {"engine_id": id, "worker_addr": workers} for rank, id in enumerate(self.engine_ids)}
        )
