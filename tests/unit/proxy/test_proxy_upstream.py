"""Legs to bare sockets: what each way of failing is called, and that none leaves anything to the garbage collector."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.proxy.core.engine import Address
from services.proxy.core.outcomes import Outcome
from services.proxy.engine_http.upstream import LegFailed, Upstream

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
SAID = {  # by the path that is asked for
    "/ok": OK,
    "/garbage": b"what is this\r\n\r\n",
    "/half": OK[:-1],
    "/reset": b"",
    "/stale": OK,  # the first time; after that it breaks off
    "/hang": b"",
}


@pytest.fixture
async def engine() -> AsyncIterator[Address]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = []
        try:
            while True:
                asked.append((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode())
                if asked[-1] == "/hang":
                    await reader.read()
                if asked[-1] in ("/reset", "/hang") or asked.count("/stale") == 2:
                    break
                writer.write(SAID[asked[-1]])
                if asked[-1] == "/half":
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the proxy closed it
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Address("{}:{}".format(*server.sockets[0].getsockname()))


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream(connect_timeout_s=2)
    yield upstream
    assert not upstream.legs
    assert not upstream.pool.busy
    await upstream.close()


async def ask(upstream: Upstream, to: Address, path: str, *, seconds: float = 5) -> Outcome:
    try:
        with upstream.leg(to, seconds) as leg:
            answer = await leg.send(method="GET", target=path, lines=b"", body=b"", repeatable=True)
            assert await answer.read_all(10) == b"{}"
            return Outcome.DONE
    except LegFailed as failure:
        return failure.outcome


@pytest.mark.parametrize(
    ("path", "outcome"),
    [
        ("/ok", Outcome.DONE),
        ("/stale", Outcome.DONE),
        ("/garbage", Outcome.BROKEN),
        ("/half", Outcome.BROKEN),
        ("/reset", Outcome.BROKEN),
        ("/hang", Outcome.TIMED_OUT),
        ("/nobody", Outcome.UNREACHABLE),
    ],
)
async def test_no_leg_leaves_anything_to_the_garbage_collector(
    upstream: Upstream, engine: Address, closed_port: Address, path: str, outcome: Outcome
) -> None:
    to = engine if path in SAID else closed_port

    async def asks(times: int) -> None:
        for _ in range(times):
            assert await ask(upstream, to, path, seconds=0.1 if path == "/hang" else 5) is outcome
        await asyncio.sleep(0.05)  # for what transports do at their end

    await asks(2)
    gc.collect()
    gc.disable()
    try:
        await asks(5)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [each for each in gc.garbage if type(each).__module__.startswith(("services.proxy", "httptools"))]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []


async def test_an_unrepeatable_request_gets_no_connection_that_may_be_closing(
    upstream: Upstream, engine: Address
) -> None:
    for _ in range(2):
        with upstream.leg(engine, 5) as leg:
            answer = await leg.send(method="POST", target="/stale", lines=b"", body=b"", repeatable=False)
            assert await answer.read_all(10) == b"{}"


@pytest.mark.parametrize("after", ["nothing", "head"])
async def test_a_leg_that_is_cut_ends_at_once_and_says_why(upstream: Upstream, engine: Address, after: str) -> None:
    async def leg() -> Any:
        with upstream.leg(engine, None) as leg:
            answer = await leg.send(
                method="GET", target="/ok" if after == "head" else "/hang", lines=b"", body=b"", repeatable=True
            )
            assert await answer.read() == b"{}"
            await leg.send(method="GET", target="/hang", lines=b"", body=b"", repeatable=True)

    cut = asyncio.create_task(leg())
    await asyncio.sleep(0.1)
    upstream.cut(engine, silent_s=1, why="it is lost")
    with pytest.raises(LegFailed, match="it is lost") as failure:
        await asyncio.wait_for(cut, 1)
    assert failure.value.outcome is Outcome.TIMED_OUT
