"""A connection to a server: one request and its response at a time, kept for the next ones.

Moves bytes: what arrives goes to a ResponseReader, what is sent goes out as fast as the socket takes it. Nothing is
done that was not asked for: no redirects, cookies, decompression, or headers. Knows nothing of engines or legs.
Keeps invariant 12 for its part: what is held in either direction is bounded.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

from services.proxy.engine_http.errors import Disconnected
from services.proxy.engine_http.http11 import ResponseReader
from services.proxy.engine_http.response import HELD_BYTES_MAX, Response

PIECE_BYTES: Final = 1 << 20


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
        self._reader: ResponseReader | None = None  # None: no request is under way
        self._is_reading = True
        self._is_writing = True  # False: the transport's buffer is full

    def send(self, response: Response, head: bytes, body: bytes, *, is_head: bool = False) -> None:
        """A large body goes piece by piece, so that it neither holds up others nor takes up memory twice."""
        self._reader = ResponseReader(response, is_head=is_head)
        response.comes_from(self)
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
        """Gives up what is under way; nothing can follow. May be called again."""
        self._forget()
        if not self._is_lost:
            self._is_lost = True
            self._transport.abort()
            self._on_lost(self)

    # -- for its transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:  # nobody asked
            self.drop()
            return
        response = reader.response
        response.heard_at = self._loop.time()
        reader.feed(data)
        if response.ended:
            self._finish()
        elif response.held > HELD_BYTES_MAX and self._is_reading and not self._is_lost:
            self._is_reading = False
            self._transport.pause_reading()
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

    # -- the end of a response

    def _finish(self) -> None:
        """The response is here; it may be read later."""
        self.resume()
        keeps = self._reader is not None and self._reader.keeps
        if keeps and self._rest is None and not self._transport.get_write_buffer_size():
            self._forget()
            self._on_idle(self)
        else:
            self.drop()

    def _lose(self, error: Exception | None) -> None:
        response = None if self._reader is None else self._reader.response
        self.drop()
        if response is None or response.ended:
            return
        if error is None and response.status and self._may_last_until_close(response):
            response.ended = response.ends_by_close = True
            response.wake()
        else:
            response.fail(Disconnected(f"the connection ended before the answer: {error or 'closed'}"))

    def _may_last_until_close(self, response: Response) -> bool:
        """Not with TLS: whoever cuts the wire would make a part look like the whole."""
        is_framed = "Content-Length" in response.headers or "Transfer-Encoding" in response.headers
        return not is_framed and self._transport.get_extra_info("sslcontext") is None

    def _forget(self) -> None:
        if self._reader is not None:
            self._reader.response.comes_from(None)
            self._reader.close()
        self._reader = self._rest = None
