"""Connections to real sockets: when one is used again, and what becomes of those that are not, or never were."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from services.proxy.engine_http import connection_pool
from services.proxy.engine_http.connection import PIECE_BYTES
from services.proxy.engine_http.connection_pool import ConnectionPool
from services.proxy.engine_http.errors import ConnectTimeout, Disconnected, HttpError, Unconnected
from services.proxy.engine_http.response import HELD_BYTES_MAX, Response

HEAD = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    def __init__(self) -> None:
        self.connections = 0
        self.open = 0
        self.to = ""

    @asynccontextmanager
    async def serving(self, serve: Serve) -> AsyncIterator["Server"]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            self.open += 1
            try:
                await serve(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass  # the proxy closed it
            finally:
                self.open -= 1
                writer.close()

        async with await asyncio.start_server(handle, "127.0.0.1", 0, limit=1 << 10) as server:
            self.to = "{}:{}".format(*server.sockets[0].getsockname())
            yield self

    async def is_left(self) -> None:
        async with asyncio.timeout(5):
            while self.open:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def pool(stack: AsyncExitStack) -> ConnectionPool:
    pool = ConnectionPool(connect_timeout_s=2)
    stack.push_async_callback(pool.close)
    return pool


async def request(reader: asyncio.StreamReader) -> bytes:
    """Its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    return await reader.readexactly(int(head.split(b": ")[1]))


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await request(reader)
        writer.write(OK + b"{}")


async def hangs(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await request(reader)
    await reader.readexactly(1)  # raises when the proxy leaves


async def ask(pool: ConnectionPool, to: str, body: bytes = b"") -> tuple[Response, bytes]:
    response = Response(asyncio.get_running_loop())
    try:
        async with asyncio.timeout(10):
            await pool.request(response, to, HEAD % len(body), body)
            content = b""
            while more := await response.read():
                content += more
            return response, content
    finally:
        response.close()


async def test_a_connection_is_reused(pool: ConnectionPool, stack: AsyncExitStack) -> None:
    server = await stack.enter_async_context(Server().serving(answers))
    assert [(await ask(pool, server.to))[0].is_new for _ in range(3)] == [True, False, False]
    assert (server.connections, pool.busy) == (1, 0)
    answered = await asyncio.gather(*(ask(pool, server.to) for _ in range(10)))
    assert [content for _, content in answered] == [b"{}"] * 10
    assert server.connections == 10
    other = await stack.enter_async_context(Server().serving(answers))
    assert (await ask(pool, other.to))[0].is_new


async def test_an_idle_connection_is_not_kept_for_long(
    pool: ConnectionPool, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_pool, "KEEPALIVE_S", 0.2)
    server = await stack.enter_async_context(Server().serving(answers))
    await ask(pool, server.to)
    await server.is_left()
    await asyncio.gather(*(ask(pool, server.to) for _ in range(5)))
    time.sleep(0.25)  # noqa: ASYNC251 - so that no timer is first
    assert (await ask(pool, server.to))[0].is_new
    await server.is_left()
    assert not pool._open


async def test_a_new_connection_replaces_an_idle_one_and_notices_if_its_host_vanishes(
    pool: ConnectionPool, stack: AsyncExitStack
) -> None:
    server = await stack.enter_async_context(Server().serving(answers))
    await ask(pool, server.to)
    response = Response(asyncio.get_running_loop())
    await pool.request(response, server.to, HEAD % 0, anew=True)
    assert (response.is_new, await response.read()) == (True, b"{}")
    assert (server.connections, len(pool._open), pool.busy) == (2, 1, 0)
    (connection,) = pool._open
    on = connection._transport.get_extra_info("socket")
    options = [on.getsockopt(socket.IPPROTO_TCP, each) for each in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)]
    assert (on.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), options) == (1, [5, 2])


@pytest.mark.parametrize("last", [b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n"])
async def test_an_idle_connection_that_the_server_closes_is_dropped(
    pool: ConnectionPool, stack: AsyncExitStack, last: bytes
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK + b"{}")
        await asyncio.sleep(0.05)
        writer.write(last)

    server = await stack.enter_async_context(Server().serving(serve))
    for _ in range(2):
        assert (await ask(pool, server.to))[0].is_new
        await server.is_left()
        await asyncio.sleep(0.05)
        assert not pool._open


async def test_a_server_that_breaks_off_is_distinguished_from_one_that_was_not_there(
    pool: ConnectionPool, stack: AsyncExitStack, closed_port: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)

    server = await stack.enter_async_context(Server().serving(serve))
    with pytest.raises(Disconnected):
        await ask(pool, server.to)
    for to, why in ((closed_port, "Errno 111"), ("no-such-host.invalid:80", "no-such-host.invalid")):
        with pytest.raises(Unconnected, match=why) as failure:
            await ask(pool, to)
        assert not isinstance(failure.value, ConnectTimeout)
    for to in ("a..b:80", "127.0.0.1:http"):
        with pytest.raises(ValueError, match=r"label|http"):
            await ask(pool, to)
    assert not pool._open


@pytest.fixture
def full_port(stack: AsyncExitStack) -> str:
    """An address that accepts no more connections, and does not say so."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for _ in range(2):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    return f"127.0.0.1:{listener.getsockname()[1]}"


async def test_a_connection_that_cannot_be_made_is_given_up(stack: AsyncExitStack, full_port: str) -> None:
    pool = ConnectionPool(connect_timeout_s=0.2)
    stack.push_async_callback(pool.close)
    began = time.monotonic()
    with pytest.raises(ConnectTimeout, match=r"within 0\.2 s"):
        await ask(pool, full_port)
    assert 0.19 <= time.monotonic() - began < 2  # the loop counts in whole milliseconds


@pytest.mark.parametrize("how", ["fail", "cancel"])
@pytest.mark.parametrize("when", ["connecting", "asked"])
async def test_a_request_that_is_given_up_leaves_nothing(
    pool: ConnectionPool, stack: AsyncExitStack, full_port: str, how: str, when: str
) -> None:
    server = await stack.enter_async_context(Server().serving(hangs))
    response = Response(asyncio.get_running_loop())

    async def asks() -> None:
        try:
            await pool.request(response, server.to if when == "asked" else full_port, HEAD % 0)
        finally:
            response.close()

    asking = asyncio.create_task(asks())
    await asyncio.sleep(0.1)
    assert (server.open, pool.busy) == ((1, 1) if when == "asked" else (0, 0))
    if how == "fail":
        response.fail(HttpError("too late"))
        with pytest.raises(HttpError, match="too late"):
            await asyncio.wait_for(asking, 1)
    else:
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    await server.is_left()
    assert not pool._open


async def test_the_pools_end_is_not_taken_for_an_answers_end(stack: AsyncExitStack) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nhel")  # it lasts until it is closed
        await hangs(reader, writer)

    server = await stack.enter_async_context(Server().serving(serve))
    pool = ConnectionPool(connect_timeout_s=2)
    asking = asyncio.create_task(ask(pool, server.to))
    await asyncio.sleep(0.1)
    await pool.close()
    with pytest.raises(Disconnected):
        await asking
    await server.is_left()


async def test_of_a_names_addresses_the_first_to_answer_is_taken(
    pool: ConnectionPool, stack: AsyncExitStack, full_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await stack.enter_async_context(Server().serving(answers))
    addresses = [(host, int(port)) for host, port in (to.split(":") for to in (full_port, server.to))]

    async def found(*_: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    monkeypatch.setattr("services.proxy.engine_http.names.Names.addresses", found)
    began = time.monotonic()
    assert (await ask(pool, "engine-0:80"))[1] == b"{}"
    assert time.monotonic() - began < 1.5  # while the connect timeout is 2


async def test_bodies_of_any_size_arrive_complete_both_ways(pool: ConnectionPool, stack: AsyncExitStack) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            body = await request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            for at in range(0, len(body), 100_000):
                writer.write(body[at : at + 100_000])
                await writer.drain()

    server = await stack.enter_async_context(Server().serving(serve))
    for size in (0, 1, 70_000, PIECE_BYTES, PIECE_BYTES + 1, 9 * PIECE_BYTES // 2):
        body = bytes(range(251)) * (size // 251 + 1)
        assert (await ask(pool, server.to, body[:size]))[1] == body[:size]
    assert server.connections == 1


async def test_a_server_that_does_not_read_costs_no_memory_and_holds_up_no_other(
    pool: ConnectionPool, stack: AsyncExitStack
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.3)
        writer.write(OK + b"{}")
        await reader.read(1 << 30)  # only its beginning, which the stream holds already
        await asyncio.sleep(5)

    server = await stack.enter_async_context(Server().serving(serve))
    asking = asyncio.create_task(ask(pool, server.to, bytes(64 << 20)))
    longest_s = 0.0
    while not asking.done():
        began = time.monotonic()
        await asyncio.sleep(0.01)
        longest_s = max(longest_s, time.monotonic() - began)
        assert all(each._transport.get_write_buffer_size() <= 2 * PIECE_BYTES for each in pool._open)
    assert (await asking)[1] == b"{}"
    assert not pool._open  # the rest was never sent
    assert longest_s < 0.5


async def test_a_flood_that_nobody_reads_stays_in_the_kernel(pool: ConnectionPool, stack: AsyncExitStack) -> None:
    size, sent = 40 << 20, 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size >> 20):
            writer.write(bytes(1 << 20))
            await writer.drain()
            sent += 1 << 20
        await reader.readexactly(1)

    server = await stack.enter_async_context(Server().serving(serve))
    response = Response(asyncio.get_running_loop())
    await pool.request(response, server.to, HEAD % 0)
    await asyncio.sleep(0.3)
    assert sent < size
    assert response.held <= HELD_BYTES_MAX + (256 << 10)  # and what one read of a socket yields
    read = 0
    while more := await response.read():
        read += len(more)
        assert response.held <= HELD_BYTES_MAX + (256 << 10)
    assert read == size
    response.close()
    assert pool.busy == 0
