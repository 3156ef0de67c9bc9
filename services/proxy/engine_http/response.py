"""A server's response to one request, as it arrives: `http11` fills it in, `connection` says when it goes on, and one
task awaits it.

Bytes of its body are handed on as they came; what nobody has read yet is held here, and bounded by the connection,
which stops reading its socket above HELD_BYTES_MAX. Keeps invariant 12 for its part.
"""

import asyncio
from typing import Final, Protocol

from multidict import CIMultiDict

HELD_BYTES_MAX: Final = 128 << 10  # of a body; above it the socket is not read
_CHUNK_BYTES: Final = 64  # what a chunk takes besides its bytes


class Source(Protocol):
    """The connection over which it comes."""

    def drop(self) -> None: ...
    def resume(self) -> None: ...


class Response:
    """close() it, whatever became of it."""

    __slots__ = (
        "_chunks",
        "_error",
        "_headers",
        "_loop",
        "_source",
        "_waiter",
        "connecting",
        "ended",
        "ends_by_close",
        "heard_at",
        "held",
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
        self.heard_at: float | None = None  # when a byte of it last came, by the loop's time
        self.is_taken = False  # the server accepted the new connection
        self.connecting: asyncio.Timeout | None = None
        self.held = 0  # bytes of its body that nobody has read yet, with their overhead
        self._headers: CIMultiDict[str] | None = None
        self._source: Source | None = None
        self._chunks: list[bytes] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def headers(self) -> CIMultiDict[str]:
        """Bytes that are not UTF-8 are lone surrogates."""
        if self._headers is None:
            self._headers = CIMultiDict(
                [(name.decode(), text_of(value).strip(" \t")) for name, value in self.raw_headers]
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
        """The next bytes of the body as they came, empty at its end. Raises HttpError, or what fail() was told."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.ended:
                return b""
            await self.wait()
        chunks, self._chunks, self.held = self._chunks, [], 0
        if self._source is not None:
            self._source.resume()
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
        """Until something happens to it; at most one task may wait."""
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def fail(self, error: Exception) -> None:
        """Nothing more comes: whoever waits for it, or will, is told. The first failure counts, and none after its
        end."""
        if self._error is None and not self.ended:
            self._error = error
            self._leave()
            if self.connecting is not None and not self.connecting.expired():
                self.connecting.reschedule(0)
            self.wake()

    def close(self) -> None:
        """Gives it up, and before its end the connection too. Nothing is read of it afterwards."""
        self._leave()
        self._error = None  # its traceback refers to what refers to it: only the garbage collector would free them

    def _leave(self) -> None:
        if self._source is not None:
            self._source.drop()

    # -- for its connection

    def comes_from(self, source: Source | None) -> None:
        self._source = source

    def take(self, chunk: bytes) -> None:
        """More of the body."""
        self._chunks.append(chunk)
        self.held += len(chunk) + _CHUNK_BYTES

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def text_of(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
