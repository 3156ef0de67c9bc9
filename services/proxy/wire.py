"""HTTP/1.1 as a client: one request and its response at a time over a connection, which is kept for the next one.

llhttp (httptools) reads what comes. A response is handed on as it arrives: what nobody has read yet is bounded, by not
reading the socket, and so is what is no body. It ends as its framing says, or fails: half a response is never taken
for a whole one. Nothing is done that was not asked for: no redirects, cookies, decompression, or headers.
Knows nothing of engines or legs; `pool` has the connections, `heads` makes the requests' heads. Keeps invariant 12 for
its part.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import httptools
from multidict import CIMultiDict

HELD_BYTES_MAX: Final = 128 << 10  # of a body, before the socket is not read any more
HEAD_BYTES_MAX: Final = 64 << 10  # of status line and headers; of trailers, and whatever else is no body
HEADERS_MAX: Final = 128
PIECE_BYTES: Final = 1 << 20
_CHUNK_BYTES: Final = 64  # what a chunk takes besides its bytes


class WireError(Exception):
    """No whole response; str() says why."""


class Unconnected(WireError):
    """No connection: the server cannot have seen the request."""


class Refused(Unconnected):
    """Nobody listens there."""


class ConnectTimeout(Unconnected):
    """No connection in time."""


class Exhausted(Unconnected):
    """What a connection takes was lacking here: that says nothing about the server."""


class Disconnected(WireError):
    """The connection ended too soon."""


class Malformed(WireError):
    """What came is no HTTP, or too much of it."""


class Response:
    """A server's response to one request. close() it, whatever became of it."""

    __slots__ = (
        "_chunks",
        "_connection",
        "_error",
        "_headers",
        "_held",
        "_loop",
        "_waiter",
        "connecting",
        "ended",
        "ends_by_close",
        "heard_at",
        "is_new",
        "is_taken",
        "raw_headers",
        "reason",
        "status",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.status = 0  # 0: not there yet
        self.reason = ""
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.ended = False  # its last byte is here, read or not
        self.is_new = False  # the connection was made for it
        self.ends_by_close = False  # nothing but the connection's end says that it is whole
        self.heard_at: float | None = None  # when a byte of it came last
        self.is_taken = False  # the server took the new connection
        self.connecting: asyncio.Timeout | None = None
        self._headers: CIMultiDict[str] | None = None
        self._connection: Connection | None = None
        self._chunks: list[bytes] = []
        self._held = 0
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def headers(self) -> CIMultiDict[str]:
        """Bytes that are no UTF-8 are lone surrogates."""
        if self._headers is None:
            self._headers = CIMultiDict(
                [(name.decode(), _text(value).strip(" \t")) for name, value in self.raw_headers]
            )
        return self._headers

    @property
    def is_heard(self) -> bool:
        """Whether a byte of it came."""
        return self.heard_at is not None

    @property
    def at_end(self) -> bool:
        """Whether all of it was read."""
        return self.ended and not self._chunks

    async def read(self) -> bytes:
        """The next bytes of the body as they came, empty at its end. Raises WireError, or what fail() was told."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.ended:
                return b""
            await self.wait()
        chunks, self._chunks, self._held = self._chunks, [], 0
        if self._connection is not None:
            self._connection.resume()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def head(self) -> None:
        """Waits for status line and headers; raises as read() does."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self.wait()

    def check(self) -> None:
        """Raises if it failed."""
        if self._error is not None:
            raise self._error

    async def wait(self) -> None:
        """Until something happened to it; there is one that waits."""
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def fail(self, error: Exception) -> None:
        """Nothing more comes: who waits for it, or will, is told."""
        if self._error is None and not self.ended:
            self._error = error
            self._leave()
            if self.connecting is not None and not self.connecting.expired():
                self.connecting.reschedule(0)
            self.wake()

    def close(self) -> None:
        """Gives it up; before its end that takes the connection with it. It is not read any more."""
        self._leave()
        self._error = None  # its traceback refers to what refers to it: else only the garbage collector would see

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.drop()

    # -- what its connection says

    def goes_over(self, connection: "Connection | None") -> None:
        self._connection = connection

    def take(self, chunk: bytes) -> int:
        """More of the body; returns how much is held."""
        self._chunks.append(chunk)
        self._held += len(chunk) + _CHUNK_BYTES
        return self._held

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """`on_idle` is told when the next request may go over it, `on_lost` when none will any more."""

    def __init__(
        self,
        to: str,
        loop: asyncio.AbstractEventLoop,
        on_idle: "Callable[[Connection], None]",
        on_lost: "Callable[[Connection], None]",
    ) -> None:
        self.to = to
        self.idle_since = 0.0  # for the pool
        self._loop = loop
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._transport: asyncio.Transport
        self._is_lost = False
        self._rest: memoryview | None = None  # of the request's body
        self._response: Response | None = None
        self._parser: httptools.HttpResponseParser | None = None  # of this response; it refers to the connection
        self._is_head = False  # the request is a HEAD
        self._is_interim = False  # a 1xx is being read
        self._keeps = False
        self._beside = 0  # bytes since the last ones of a body
        self._is_reading = True
        self._is_writing = True  # False: the transport's buffer is full

    # -- a request

    def send(self, response: Response, head: bytes, body: bytes, *, is_head: bool = False) -> None:
        """A large body goes piece by piece, so that it holds up nobody, and not into memory a second time."""
        self._response, self._parser = response, httptools.HttpResponseParser(self)
        self._is_head, self._is_interim, self._keeps, self._beside = is_head, False, False, 0
        response.goes_over(self)
        if len(body) <= PIECE_BYTES:
            self._transport.writelines((head, body))
        else:
            self._transport.write(head)
            self._rest = memoryview(body)
            self._send_more()

    def _send_more(self) -> None:
        if self._rest is None or not self._is_writing:
            return
        piece, self._rest = self._rest[:PIECE_BYTES], self._rest[PIECE_BYTES:] or None
        self._transport.write(piece)
        if self._is_writing:
            self._loop.call_soon(self._send_more)  # others first

    @property
    def is_open(self) -> bool:
        """Whether a request can go over it, as far as is known here."""
        return not self._is_lost and not self._transport.is_closing()

    def resume(self) -> None:
        """The response was read."""
        if not self._is_reading:
            self._is_reading = True
            self._transport.resume_reading()

    def drop(self) -> None:
        """What is under way is given up, and nothing can follow. May be called again."""
        self._forget()
        if not self._is_lost:
            self._is_lost = True
            self._transport.abort()
            self._on_lost(self)

    # -- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        response, parser = self._response, self._parser
        if response is None or parser is None:  # nobody asked
            self.drop()
            return
        response.heard_at = self._loop.time()
        self._beside += len(data)
        try:
            parser.feed_data(data)
            if self._beside > HEAD_BYTES_MAX:
                raise Malformed(f"over {HEAD_BYTES_MAX} bytes that are no body")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, Malformed) as error:
            self._keeps = False
            if not response.ended:
                response.fail(Malformed(f"no HTTP: {error.__context__ or error}"))  # what a callback raised, if one did
                return
        if response.ended:
            self._finish()
        response.wake()

    def eof_received(self) -> None:
        self._lose(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._lose(error)

    def pause_writing(self) -> None:
        self._is_writing = False

    def resume_writing(self) -> None:
        self._is_writing = True
        self._send_more()

    # -- what the parser says

    def on_message_begin(self) -> None:
        if self._response is not None and self._response.ended:
            self._keeps = False  # nobody asked for a second one

    def on_status(self, reason: bytes) -> None:
        if self._response is not None and not self._response.ended:
            self._response.reason += _text(reason)

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self._response
        if response is None or response.status:  # a trailer
            return
        if len(response.raw_headers) == HEADERS_MAX:
            raise Malformed(f"over {HEADERS_MAX} headers")
        if name.lower() == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise Malformed("a transfer encoding that nobody asked for")
        response.raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        response, parser = self._response, self._parser
        if response is None or parser is None or response.ended:
            return
        status = parser.get_status_code()
        if status == 101 or status < 100:
            raise Malformed(f"status {status}")
        if status < 200:
            self._is_interim = True
            response.reason = ""
            response.raw_headers.clear()
            return
        response.status = status
        if self._is_head:
            self._keeps = parser.should_keep_alive()
            response.ended = True

    def on_body(self, chunk: bytes) -> None:
        response = self._response
        if response is None or response.ended:  # of a HEAD
            self._keeps = False
            return
        self._beside = 0
        if response.take(chunk) > HELD_BYTES_MAX and self._is_reading:
            self._is_reading = False
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        response, parser = self._response, self._parser
        if response is None or parser is None or response.ended:
            return
        if self._is_interim:
            self._is_interim = False
            return
        response.ended = True
        self._keeps = parser.should_keep_alive()

    # -- the end of a response

    def _finish(self) -> None:
        """The response is here; read it may be later."""
        self.resume()
        if self._keeps and self._rest is None and not self._transport.get_write_buffer_size():
            self._forget()
            self._on_idle(self)
        else:
            self.drop()

    def _lose(self, error: Exception | None) -> None:
        response = self._response
        self.drop()
        if response is None or response.ended:
            return
        if error is None and response.status and self._may_last_until_close(response):
            response.ended = response.ends_by_close = True
            response.wake()
        else:
            response.fail(Disconnected(f"the connection ended before the answer: {error or 'closed'}"))

    def _may_last_until_close(self, response: Response) -> bool:
        """Not with TLS: who cuts the wire would make a part look like the whole."""
        is_framed = "Content-Length" in response.headers or "Transfer-Encoding" in response.headers
        return not is_framed and self._transport.get_extra_info("sslcontext") is None

    def _forget(self) -> None:
        if self._response is not None:
            self._response.goes_over(None)
        self._response = self._parser = self._rest = None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
