"""Which part of a request's time to its first byte is the proxy's own, by its metrics.

Bounds that hold on a slow machine: an engine's time is never counted, the proxy's always is.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from services.proxy.core import requests
from services.proxy.story import Waits
from tests.unit.proxy.conftest import Cluster
from tests.unit.proxy.fake_engine import Bootstrap, Engine

PAUSE_S = 0.2
ASKED = {"model": "tiny", "prompt": "hello", "stream": True}


async def stream(cluster: Cluster, **options: Any) -> None:
    async with cluster.client.post("/v1/completions", **(options or {"json": ASKED})) as response:
        assert response.status == 200
        await response.read()
    await cluster.metric_is(1, "added_seconds_count")


def slow(engine: Engine) -> None:
    async def act(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(PAUSE_S)
        return await engine.answer(request)

    engine.act = act


def others_s(cluster: Cluster) -> float:
    """The part of the time to the first byte that is not the proxy's own."""
    return cluster.metric("time_to_first_token_seconds_sum") - cluster.metric("added_seconds_sum")


async def test_time_in_engines_is_not_the_proxys_own(start_cluster: Any) -> None:
    cluster = await start_cluster()
    slow(cluster.prefills[0])
    slow(cluster.decodes[0])
    await stream(cluster)
    assert others_s(cluster) >= 2 * PAUSE_S * 0.99


async def test_time_in_a_failing_engine_is_not_the_proxys_own_either(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 2)

    async def fail(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(PAUSE_S)
        return await cluster.decodes[0].answer_500(request)

    for engine in cluster.decodes:
        engine.act = fail
    cluster.decodes[1].act = cluster.decodes[1].answer
    for _ in range(2):  # whichever is asked first
        async with cluster.client.post("/v1/completions", json=ASKED) as response:
            assert response.status == 200
            await response.read()
    await cluster.metric_is(2, "added_seconds_count")
    assert cluster.metric("retries_total", engine=cluster.decodes[0].address) >= 1
    assert others_s(cluster) >= PAUSE_S * 0.99


async def test_engines_asked_at_once_count_as_one_wait(start_cluster: Any) -> None:
    async with Bootstrap("id").serving() as bootstrap:
        cluster = await start_cluster(mooncake_bootstrap_port=bootstrap.port)
        slow(cluster.prefills[0])
        slow(cluster.decodes[0])
        await stream(cluster)
    assert others_s(cluster) >= PAUSE_S * 0.99
    assert cluster.metric("added_seconds_sum") >= 0


async def test_a_slow_clients_time_is_not_the_proxys_own(start_cluster: Any) -> None:
    cluster = await start_cluster()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"model": "tiny", "prompt": "hello",'
        await asyncio.sleep(PAUSE_S)
        yield b'"stream": true}'

    await stream(cluster, data=body(), headers={"Content-Type": "application/json"})
    assert others_s(cluster) >= PAUSE_S * 0.99


async def test_the_proxys_own_work_is_its_own(start_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, parse = await start_cluster(), requests.parse_request

    def parse_slowly(*given: Any) -> Any:
        time.sleep(PAUSE_S)
        return parse(*given)

    monkeypatch.setattr(requests, "parse_request", parse_slowly)
    await stream(cluster)
    assert cluster.metric("added_seconds_sum") >= PAUSE_S


async def test_waiting_for_a_turn_is_the_proxys_own(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 1, max_concurrency=1)
    slow(cluster.decodes[0])
    await asyncio.gather(*(cluster.client.post("/v1/completions", json=ASKED, raise_for_status=True) for _ in range(2)))
    await cluster.metric_is(2, "added_seconds_count")
    assert cluster.metric("added_seconds_sum") >= PAUSE_S * 0.9


def test_waits_that_overlap_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr("services.proxy.story.time", SimpleNamespace(monotonic=lambda: now[0]))
    waits = Waits()
    with waits:
        now[0] = 11.0
        with waits:
            now[0] = 13.0
        assert waits.seconds(13.5) == 3.5
        now[0] = 14.0
    now[0] = 20.0
    with waits:
        now[0] = 21.0
    assert waits.seconds(30.0) == 5.0
