"""What clients may do to the proxy: how many connections they may have, how long a request's head may take and how
large it may be, and what garbage is answered.

aiohttp bounds none of the first three, and answers the last in plain text, over a connection that it closes so fast
that a client that is still sending never reads it. A slow or oversized head, and one connection too many, are answered
in OpenAI's form too, and let go. Keeps invariant 12 for its part.
"""

import asyncio
import contextlib
import json
import resource
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from services.proxy.aiohttp_inner import Connection, Runner, Server
from services.proxy.errors import error_object

HEAD_S: Final = 10.0
HEAD_BYTES_MAX: Final = 64 << 10  # of a head that is not whole yet
IDLE_S: Final = 75.0
CONNECTIONS_MAX: Final = 8192
_LINGER_S: Final = 2.0  # for what the client is still sending: else its system throws the answer away
_REASONS: Final = {408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}


class _ClientConnection(Connection):
    __slots__ = ("_head_bytes", "_head_timer")

    def __init__(self, manager: "_BoundedServer", **options: Any) -> None:
        super().__init__(manager, **options)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None  # once it is refused: the linger time's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if cast(_BoundedServer, self.server).is_full:
            self._refuse(503, "the proxy has as many connections as it may have; retry later")

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.is_deaf:
            return
        super().data_received(data)
        if not self.awaits_request:  # one is under way: its head is whole
            if self._head_timer is not None:
                self._stop_timer()
            return
        if self._head_timer is None:
            self._head_bytes = 0
            self._head_timer = asyncio.get_running_loop().call_later(
                HEAD_S, self._refuse, 408, f"the request's head did not arrive within {HEAD_S:g} s"
            )
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(431, f"the request's head is over {HEAD_BYTES_MAX} bytes")

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is not HTTP, or too much of it."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        if isinstance(exc, LineTooLong) or "Too many headers" in str(exc):
            status = 431
        elif status >= 500:
            self.log_exception("Error handling request from %s", request.remote, exc_info=exc)
        self.turn_deaf()
        reason = " ".join((message or str(exc)).split())[:300]
        return _LastAnswer(self, status, f"the request is not understood: {reason}")

    def half_close(self) -> None:
        """Says that no more is to come; the client closes, or the linger time runs out."""
        if self.transport is not None:
            with contextlib.suppress(OSError, RuntimeError):  # it has just left
                self.transport.write_eof()

    def _refuse(self, status: int, message: str) -> None:
        if self.is_deaf or self.transport is None:
            return
        self._stop_timer()
        body = json.dumps(error_object(status, message)).encode()
        head = b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        self.transport.write(head % (status, _REASONS[status], len(body)) + body)
        self.stop()
        self.half_close()
        self._head_timer = asyncio.get_running_loop().call_later(_LINGER_S, self.force_close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _LastAnswer(web.Response):
    def __init__(self, connection: _ClientConnection, status: int, message: str) -> None:
        super().__init__(status=status, text=json.dumps(error_object(status, message)), content_type="application/json")
        self._connection = connection
        self.force_close()

    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(data)
        self._connection.half_close()
        await asyncio.sleep(_LINGER_S)  # ends with the connection


class _BoundedServer(Server):
    connection_type = _ClientConnection

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, keepalive_timeout=IDLE_S, **options)
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._open_max = min(CONNECTIONS_MAX, descriptors // 3)  # a request takes one here, and up to two of engines
        self._open = 0

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._open += 1

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._open -= 1

    @property
    def is_full(self) -> bool:
        return self._open > self._open_max


def bounded_runner(app: web.Application, **options: Any) -> web.AppRunner:
    """An AppRunner whose clients are held to all this. Options are aiohttp's."""
    return Runner(app, _BoundedServer, **options)
