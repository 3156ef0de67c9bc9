"""A connection and the responses that come over it, byte by byte: how they end, how they fail, how much is held."""

import asyncio
from typing import Any

import pytest

from services.proxy.engine_http.connection import PIECE_BYTES, Connection
from services.proxy.engine_http.errors import Disconnected, HttpError, Malformed
from services.proxy.engine_http.http11 import HEAD_BYTES_MAX, HEADERS_MAX
from services.proxy.engine_http.response import HELD_BYTES_MAX, Response

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = OK + b"Content-Length: 5\r\n\r\nhello"
HELLO = b"5;name=value\r\nhello\r\n"
KEPT = {
    "content length": LENGTH,
    "nothing": OK + b"Content-Length: 0\r\n\r\n",
    "chunked": CHUNKED + b"2\r\nhe\r\n" + b"3;name=value\r\nllo\r\n" + b"0\r\nX-Trailer: 1\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "100 before it": b"HTTP/1.1 100 Continue\r\nX-A: 0\r\n\r\n" + LENGTH,
    "two before it": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 2 + LENGTH,
    "kept by 1.0": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
}
CLOSED = {
    "closed": OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",
    "closed chunks": OK + b"Connection: close\r\nTransfer-Encoding: Chunked \r\n\r\n" + HELLO + b"0\r\n\r\n",
    "1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
}
UNTIL_CLOSE = {
    "until it is closed": OK + b"\r\nhello",
    "until 1.0 is closed": b"HTTP/1.0 200 OK\r\n\r\nhello",
}
GARBAGE = {
    "no HTTP": b"\x00\x01 what is this\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "status 42": b"HTTP/1.1 042 Odd\r\nContent-Length: 5\r\n\r\nhello",
    "a new protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello",
    "bare line ends": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "a NUL in a header": OK + b"X-A: \0\r\n\r\n",
    "a header that goes on": OK + b"X-A: 1\r\n 2\r\nContent-Length: 5\r\n\r\nhello",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "a length and chunks": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO + b"0\r\n\r\n",
    "a senseless length": OK + b"Content-Length: -5\r\n\r\nhello",
    "an endless length": OK + b"Content-Length: 99999999999999999999\r\n\r\nhello",
    "an encoding nobody asked for": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + HELLO + b"0\r\n\r\n",
    "a chunk without a size": CHUNKED + b"no number\r\nhello\r\n",
    "a chunk too long": CHUNKED + HELLO + b"5\r\nhello world",
    "an endless chunk": CHUNKED + b"fffffffffffffffff\r\n",
    "too many headers": OK + b"X-A: 1\r\n" * (HEADERS_MAX + 1) + b"\r\n",
    "an endless reason": b"HTTP/1.1 200 " + b"o" * 2 * HEAD_BYTES_MAX,
    "an endless name": OK + b"X" * 2 * HEAD_BYTES_MAX,
    "an endless header": OK + b"X-A: " + b"a" * 2 * HEAD_BYTES_MAX,
    "an endless trailer": CHUNKED + HELLO + b"0\r\nX-A: " + b"a" * 2 * HEAD_BYTES_MAX,
    "an endless chunk extension": CHUNKED + b"5;name=" + b"a" * 2 * HEAD_BYTES_MAX,
    "endless hints": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3000,
}


class Transport(asyncio.Transport):
    """Notes what is done to it; what is written stays in its buffer until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.unsent = 0
        self.is_reading_now = True
        self.is_aborted = False

    def write(self, data: Any) -> None:
        self.sent.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.is_reading_now = False

    def resume_reading(self) -> None:
        self.is_reading_now = True

    def abort(self) -> None:
        self.is_aborted = True


class OneRequest:
    """One connection, and a request that was sent over it."""

    def __init__(self, *, is_head: bool = False) -> None:
        self.idle = 0
        self.lost = 0
        self.transport = Transport()
        self.connection = Connection("x:1", asyncio.get_running_loop(), self._count_idle, self._count_lost)
        self.connection.connection_made(self.transport)
        self.ask(is_head=is_head)

    def ask(self, *, is_head: bool = False) -> None:
        self.response = Response(asyncio.get_running_loop())
        self.connection.send(self.response, b"GET / HTTP/1.1\r\n\r\n", b"", is_head=is_head)

    def feed(self, content: bytes, step: int = 1 << 20) -> None:
        """As data_received does: not over an aborted transport."""
        for at in range(0, len(content), step):
            if not self.transport.is_aborted:
                self.connection.data_received(content[at : at + step])

    async def read_all(self) -> bytes:
        async with asyncio.timeout(1):
            await self.response.head()
            content = b""
            while more := await self.response.read():
                content += more
        assert self.response.at_end
        return content

    def _count_idle(self, _: Connection) -> None:
        self.idle += 1

    def _count_lost(self, _: Connection) -> None:
        self.lost += 1


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize("how", [*KEPT, *CLOSED, *UNTIL_CLOSE])
async def test_a_response_ends_as_it_says(how: str, step: int) -> None:
    content, on = (KEPT | CLOSED | UNTIL_CLOSE)[how], OneRequest()
    on.feed(content, step)
    if how in UNTIL_CLOSE:
        assert not on.response.ended
        on.connection.eof_received()
    assert await on.read_all() == (b"hello" if content.find(b"llo") > 0 else b"")
    assert str(on.response.status) == (how if how.isdigit() else "200")
    assert (on.idle, on.lost) == ((1, 0) if how in KEPT else (0, 1))
    assert on.transport.is_aborted == (how not in KEPT)
    if how in KEPT:
        on.ask()
        on.feed(LENGTH, step)
        assert await on.read_all() == b"hello"


@pytest.mark.parametrize("how", [*KEPT, *CLOSED, *UNTIL_CLOSE])
async def test_no_part_of_a_response_is_taken_for_the_whole(how: str) -> None:
    content = (KEPT | CLOSED | UNTIL_CLOSE)[how]
    until_close = content.index(b"\r\n\r\n") + 4 if how in UNTIL_CLOSE else len(content)
    for length in range(until_close):
        on = OneRequest()
        on.feed(content[:length])
        on.connection.eof_received()
        with pytest.raises(Disconnected):
            await on.read_all()
        assert (on.idle, on.lost, on.response.is_heard) == (0, 1, length > 0)


@pytest.mark.parametrize("content", UNTIL_CLOSE.values(), ids=UNTIL_CLOSE)
async def test_a_reset_is_not_an_end(content: bytes) -> None:
    on = OneRequest()
    on.feed(content)
    on.connection.connection_lost(ConnectionResetError(104, "Connection reset by peer"))
    with pytest.raises(Disconnected, match="reset by peer"):
        await on.read_all()


@pytest.mark.parametrize("step", [1, 1 << 20])
@pytest.mark.parametrize("how", GARBAGE)
async def test_garbage_fails_at_once(how: str, step: int) -> None:
    on = OneRequest()
    on.feed(GARBAGE[how], step if len(GARBAGE[how]) < 1000 else min(max(step, 1000), 32_000))
    with pytest.raises(Malformed):
        await on.read_all()
    assert (on.idle, on.lost, on.transport.is_aborted) == (0, 1, True)


@pytest.mark.parametrize("surplus", [b"x", b"HTTP/1.1 200 OK\r\n", LENGTH])
@pytest.mark.parametrize("first", [KEPT["content length"], KEPT["chunked"], CLOSED["closed"]])
async def test_surplus_bytes_end_the_connection_but_not_the_response(first: bytes, surplus: bytes) -> None:
    on = OneRequest()
    on.feed(first + surplus)
    assert await on.read_all() == b"hello"
    assert (on.idle, on.lost) == (0, 1)
    on = OneRequest()
    on.feed(LENGTH)
    on.feed(surplus)  # while it is idle
    assert (on.idle, on.lost, on.transport.is_aborted) == (1, 1, True)


async def test_the_answer_to_a_head_has_no_body() -> None:
    on = OneRequest(is_head=True)
    on.feed(LENGTH[:-5])
    assert await on.read_all() == b""
    assert (on.response.headers["content-length"], on.idle) == ("5", 1)
    on.ask(is_head=True)
    on.feed(LENGTH)  # but this one has
    assert await on.read_all() == b""
    assert (on.idle, on.lost) == (1, 1)


async def test_head_and_headers_are_as_they_came() -> None:
    on = OneRequest()
    on.feed(b"HTTP/1.1 418 I'm a teapot\r\nX-A: caf\xe9 \r\nx-a: caf\xc3\xa9\r\nX-B:\r\nContent-Length: 0\r\n\r\n")
    assert await on.read_all() == b""
    assert (on.response.status, on.response.reason) == (418, "I'm a teapot")
    assert on.response.headers.getall("X-A") == ["caf\udce9", "café"]
    assert on.response.headers["X-B"] == ""


async def test_bytes_that_came_before_a_failure_are_read_first() -> None:
    on = OneRequest()
    on.feed(CHUNKED + HELLO + b"no number\r\n")
    assert await on.response.read() == b"hello"
    with pytest.raises(Malformed):
        await on.response.read()


async def test_a_waiting_reader_is_woken() -> None:
    on = OneRequest()
    waiting = asyncio.ensure_future(on.read_all())
    for part in (CHUNKED, b"2\r\nhe\r\n", b"3\r\nllo\r\n", b"0\r\n\r\n"):
        await asyncio.sleep(0)
        on.feed(part)
    assert await waiting == b"hello"
    for when in (b"", CHUNKED, CHUNKED + HELLO):
        on = OneRequest()
        waiting = asyncio.ensure_future(on.read_all())
        on.feed(when)
        await asyncio.sleep(0)
        on.response.fail(HttpError("too late"))
        on.feed(HELLO)
        with pytest.raises(HttpError, match="too late"):
            await waiting
        assert (on.idle, on.lost, on.transport.is_aborted) == (0, 1, True)


async def test_only_the_first_failure_counts_and_none_after_the_end() -> None:
    on = OneRequest()
    on.feed(LENGTH)
    on.response.fail(HttpError("too late"))
    assert await on.read_all() == b"hello"
    on.ask()
    on.response.fail(HttpError("first"))
    on.response.fail(HttpError("second"))
    with pytest.raises(HttpError, match="first"):
        await on.read_all()


async def test_closing_an_unfinished_response_closes_its_connection() -> None:
    on = OneRequest()
    on.feed(LENGTH[:-1])
    on.response.close()
    on.response.close()
    assert (on.idle, on.lost, on.transport.is_aborted) == (0, 1, True)
    on = OneRequest()
    on.feed(LENGTH)
    on.response.close()  # it is complete: the connection is no longer its own
    assert (on.idle, on.lost) == (1, 0)


async def test_the_bytes_held_are_bounded() -> None:
    on = OneRequest()
    piece = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    on.feed(CHUNKED)
    fed = 0
    while on.transport.is_reading_now:
        on.feed(piece)
        fed += 0x8000
    assert fed <= HELD_BYTES_MAX + 0x8000
    assert len(await on.response.read()) == fed
    assert on.transport.is_reading_now
    on.feed(piece * 8 + b"0\r\n\r\n")  # the last of it: nothing is left to hold back
    assert (on.idle, on.transport.is_reading_now) == (1, True)
    assert len(await on.read_all()) == 8 * 0x8000


async def test_a_large_request_goes_in_pieces() -> None:
    on = OneRequest()
    on.feed(LENGTH)
    body = bytes(range(256)) * (5 * PIECE_BYTES // 512)  # two and a half
    on.transport.sent.clear()
    response = on.response = Response(asyncio.get_running_loop())
    on.connection.send(response, b"head", body)
    assert len(on.transport.sent) == 2  # the head, and one piece
    on.connection.pause_writing()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(on.transport.sent) == 2
    on.connection.resume_writing()
    assert len(on.transport.sent) == 3
    await asyncio.sleep(0)
    assert b"".join(on.transport.sent) == b"head" + body
    on.feed(LENGTH)
    assert await on.read_all() == b"hello"
    assert on.idle == 2


@pytest.mark.parametrize("unsent", [0, 1])
async def test_an_answer_before_the_request_was_sent_is_the_connections_last(unsent: int) -> None:
    on = OneRequest()
    if unsent:
        on.transport.unsent = unsent
    else:
        on.feed(LENGTH)
        on.idle = 0
        on.response = Response(asyncio.get_running_loop())
        on.connection.send(on.response, b"head", bytes(2 * PIECE_BYTES))
    on.feed(LENGTH)
    assert await on.read_all() == b"hello"
    assert (on.idle, on.lost) == (0, 1)
    sent = len(on.transport.sent)
    await asyncio.sleep(0)
    assert len(on.transport.sent) == sent
