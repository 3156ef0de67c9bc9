"""A client that leaves: its legs are cancelled at once, whatever they are doing, so that no engine works or keeps KV in
vain. `pytest -s` shows how long engines took to notice."""

import asyncio
import json
import socket
import statistics
import time
from typing import Any

import pytest
from aiohttp import web

from services.proxy.core.engine import Role
from tests.unit.proxy.fake_engine import Bootstrap

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
SEEN_S = 1.0  # on a busy machine; the promise is 0.1
TIMES = 5


class Client:
    """Sends one request over a socket of its own, and leaves by closing it, or by resetting it."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._address = host, int(port)

    async def ask(self, *, sent: int | None = None, **fields: Any) -> None:
        """Sent: how many bytes of the body; None: all."""
        self.reader, self._writer = await asyncio.open_connection(*self._address)
        body = json.dumps({"model": "tiny", "prompt": "hello", "stream": True} | fields).encode()
        self._writer.write(HEAD % len(body) + body[:sent])

    async def leave(self, *, reset: bool) -> float:
        """When."""
        if reset:
            linger = (1).to_bytes(4, "little") + bytes(4)
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        left = time.monotonic()
        self._writer.close()
        return left


async def seen_after(cluster: Any, engines: list[Any], *, after_bytes: bytes = b"", reset: bool) -> float:
    """Seconds from when the client left until all of these engines saw their leg cancelled."""
    for engine in engines:
        engine.called.clear()
    client = Client(cluster.url)
    await client.ask()
    async with asyncio.timeout(5):
        for engine in engines:
            await engine.called.wait()
        if after_bytes:
            await client.reader.readuntil(after_bytes)
    left = await client.leave(reset=reset)
    async with asyncio.timeout(5):
        for engine in engines:
            await engine.legs[-1].ended.wait()
    took = time.monotonic() - left
    assert all(engine.legs[-1].cancelled for engine in engines)
    await cluster.metric_is(0, "in_flight")
    assert not any(cluster.metric("engine_legs", role=role) for role in ("prefill", "decode"))
    return took


async def show(title: str, cluster: Any, engines: list[Any], *, after_bytes: bytes = b"") -> None:
    took = [await seen_after(cluster, engines, after_bytes=after_bytes, reset=n % 2 == 1) for n in range(TIMES)]
    print(f"\n{title}: seen after {1000 * statistics.median(took):.1f} ms (median), {1000 * max(took):.1f} ms (worst)")
    assert max(took) < SEEN_S
    await cluster.metric_is(TIMES, "requests_total", code="499", outcome="cancelled")
    assert not cluster.metric("retries_total")
    assert not any(engine.failures for role in Role for engine in cluster.proxy.fleet.engines(role))


async def test_during_prefill(cluster: Any) -> None:
    cluster.prefills[0].act = cluster.prefills[0].hang
    await show("during prefill", cluster, cluster.prefills)
    assert cluster.decodes[0].legs == []


async def test_before_decodes_first_byte(cluster: Any) -> None:
    cluster.decodes[0].act = cluster.decodes[0].hang
    await show("before decode's first byte", cluster, cluster.decodes)


async def test_during_the_stream(cluster: Any, events: list[bytes]) -> None:
    async def begin(request: web.Request) -> web.StreamResponse:
        await cluster.decodes[0].stream(request, events=1)
        return await cluster.decodes[0].hang(request)

    cluster.decodes[0].act = begin
    await show("during the stream", cluster, cluster.decodes, after_bytes=events[0])


async def test_while_a_pair_is_under_way(start_cluster: Any, bootstrap: Bootstrap) -> None:
    cluster = await start_cluster(mooncake_bootstrap_port=bootstrap.port)
    engines = [*cluster.prefills, *cluster.decodes]
    for engine in engines:
        engine.act = engine.hang
    await show("while a pair is under way", cluster, engines)


async def test_while_an_answer_is_not_streamed(cluster: Any) -> None:
    cluster.decodes[0].act = cluster.decodes[0].hang
    client = Client(cluster.url)
    await client.ask(stream=False)
    await asyncio.wait_for(cluster.decodes[0].called.wait(), 5)
    left = await client.leave(reset=False)
    await asyncio.wait_for(cluster.decodes[0].legs[0].ended.wait(), 5)
    assert time.monotonic() - left < SEEN_S


async def test_while_its_body_is_still_being_sent(cluster: Any) -> None:
    client = Client(cluster.url)
    await client.ask(sent=1)
    await cluster.metric_is(1, "in_flight")
    await client.leave(reset=False)
    await cluster.metric_is(0, "in_flight")
    assert cluster.legs == []


@pytest.mark.parametrize("times", [30])
async def test_many_leaving_clients_leave_nothing_behind(start_cluster: Any, times: int) -> None:
    cluster = await start_cluster(2, 2, max_concurrency=8)
    for engine in cluster.prefills:
        engine.act = engine.hang
    clients = [Client(cluster.url) for _ in range(times)]
    for client in clients:
        await client.ask()
    await cluster.metric_is(times - 8, "queue")
    for n, client in enumerate(clients):
        await client.leave(reset=n % 2 == 0)
    await cluster.metric_is(0, "in_flight")
    assert cluster.metric("queue") == 0
    for engine in cluster.prefills:
        engine.act = engine.answer
    assert (await cluster.complete())[0] == 200
