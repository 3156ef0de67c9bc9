"""Clients' connections: their number, how long and large a request's head may be, and what garbage is answered.

aiohttp bounds none of the first three, and answers the last in plain text, over a connection that it closes so fast
that who is still sending never reads it. A head that is slow or too large, and one connection too many, are answered
in OpenAI's shape, too, and let go. At the proxy's end each connection closes as soon as nothing is under way on it.
A path means the same with a slash at its end. Made from aiohttp 3's protocol class, hence the bound on its version.
Keeps invariant 12 for its part.
"""

import asyncio
import contextlib
import json
import re
import resource
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http import RawRequestMessage, StreamWriter
from aiohttp.http_exceptions import LineTooLong

from services.proxy.errors import error_object

HEAD_S: Final = 10.0
HEAD_BYTES_MAX: Final = 64 << 10  # of a head that is not whole yet
IDLE_S: Final = 75.0
CONNECTIONS_MAX: Final = 8192
_LINGER_S: Final = 2.0  # for what the client is still sending: else its system throws the answer away
_LONE: Final = re.compile("[\udc80-\udcff]")  # surrogates: bytes that are no UTF-8
_REASONS: Final = {408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}


class Runner(web.AppRunner):
    """An AppRunner whose connections are bounded."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made.request_handler, request_factory=partial(_request, made.request_factory), **self._kwargs)


def _request(make: Callable[..., web.BaseRequest], message: RawRequestMessage, *args: Any) -> web.BaseRequest:
    """A slash at a path's end says nothing here; engines would redirect to themselves."""
    path = message.url.raw_path
    if path.endswith("/") and path != "/":
        url = message.url.with_path(path.rstrip("/") or "/", encoded=True, keep_query=True)
        message = message._replace(url=url)
    return make(message, *args)


class _Server(web.Server):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, keepalive_timeout=IDLE_S, **options)
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._open_max = min(CONNECTIONS_MAX, descriptors // 3)  # a request takes one here, and up to two of engines
        self._open = 0

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._open += 1

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._open -= 1

    @property
    def is_full(self) -> bool:
        return self._open > self._open_max


class _Connection(web.RequestHandler):
    __slots__ = ("_head_bytes", "_head_timer", "_is_ending")

    def __init__(self, manager: _Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None  # once it is refused: the linger time's
        self._is_ending = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if cast(_Server, self._manager).is_full:
            self._refuse(503, "the proxy has as many connections as it may have; retry later")

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._close:
            return  # nobody reads it
        super().data_received(data)
        waiter = self._waiter
        if waiter is None or waiter.done():  # a request is under way: its head is whole
            if self._head_timer is not None:
                self._stop_timer()
            return
        if self._head_timer is None:
            self._head_bytes = 0
            self._head_timer = self._loop.call_later(
                HEAD_S, self._refuse, 408, f"the request's head did not arrive within {HEAD_S:g} s"
            )
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(431, f"the request's head is over {HEAD_BYTES_MAX} bytes")

    def resume_reading(self, resume_parser: bool = True) -> None:
        """aiohttp asks for it with every body that was read, and would parse and poll anew where nothing is held up."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    def close(self) -> None:
        """Asks for the connection's end. Of itself, aiohttp would leave an idle one open to the last, and unread what
        comes over it, and over another one the rest of a request's body."""
        if self._request_in_progress:
            self._is_ending = True
            return
        is_idle = self._waiter is not None and not self._waiter.done()
        super().close()
        if is_idle and self.transport is not None:
            self.transport.close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if self._is_ending:
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, or too much of it."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        if isinstance(exc, LineTooLong) or "Too many headers" in str(exc):
            status = 431
        elif status >= 500:
            self.log_exception("Error handling request from %s", request.remote, exc_info=exc)
        self._close = True  # what still comes is thrown away
        reason = " ".join((message or str(exc)).split())[:300]
        return _LastAnswer(self, status, f"the request is not understood: {reason}")

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, message: str) -> None:
        if self._close or self.transport is None:
            return
        self._stop_timer()
        body = json.dumps(error_object(status, message)).encode()
        head = b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        self.transport.write(head % (status, _REASONS[status], len(body)) + body)
        super().close()
        self.half_close()
        self._head_timer = self._loop.call_later(_LINGER_S, self.force_close)

    def half_close(self) -> None:
        """Says that no more is to come; the client closes, or the linger time runs out."""
        if self.transport is not None:
            with contextlib.suppress(OSError, RuntimeError):  # it has just left
                self.transport.write_eof()


class _LastAnswer(web.Response):
    def __init__(self, connection: _Connection, status: int, message: str) -> None:
        super().__init__(status=status, text=json.dumps(error_object(status, message)), content_type="application/json")
        self._connection = connection
        self.force_close()

    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(data)
        self._connection.half_close()
        await asyncio.sleep(_LINGER_S)  # ends with the connection


class PassedOn(web.StreamResponse):
    """An engine's answer. Its head goes out with its first bytes, which are always there by then: one packet less, and
    one system call. Header values keep bytes that are no UTF-8, which aiohttp would leave out."""

    _send_headers_immediately = False

    async def _write_headers(self) -> None:
        await super()._write_headers()
        text = "".join(self._headers.values()) + self._reason
        if not text.isascii() and _LONE.search(text):
            lines = "".join([f"{name}: {value}\r\n" for name, value in self._headers.items()])
            version = cast(web.BaseRequest, self._req).version
            head = f"HTTP/{version.major}.{version.minor} {self._status} {self._reason}\r\n{lines}\r\n"
            cast(StreamWriter, self._payload_writer)._headers_buf = head.encode(errors="surrogateescape")
