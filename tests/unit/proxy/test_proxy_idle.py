"""--request-timeout bounds the wait for an answer and for each further byte of it, not how long the answer takes."""

import asyncio
import json
import time
from typing import Any

import pytest
from aiohttp import web

LIMIT_S = 0.5


def every(seconds: float, count: int, *, kind: str = "text/event-stream", then_s: float = 0) -> Any:
    async def act(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        for number in range(count):
            await response.write(b'data: {"token": %d}\n\n' % number)
            await asyncio.sleep(seconds)
        await asyncio.sleep(then_s)
        return response

    return act


@pytest.mark.parametrize("prefills", [0, 1])
@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
async def test_an_answer_that_keeps_coming_is_not_cut_off(start_cluster: Any, prefills: int, kind: str) -> None:
    cluster = await start_cluster(prefills, 1, request_timeout=LIMIT_S)
    cluster.decodes[0].act = every(LIMIT_S / 4, 12, kind=kind)
    began = time.monotonic()
    async with cluster.client.post("/v1/completions", json={"stream": True}) as response:
        content = await response.read()
    assert time.monotonic() - began > 2 * LIMIT_S
    assert content == b"".join(b'data: {"token": %d}\n\n' % number for number in range(12))
    await cluster.metric_is(1, "requests_total", outcome="ok", code="200")


async def test_an_engine_that_falls_silent_is_given_up(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 1, request_timeout=LIMIT_S)
    cluster.decodes[0].act = every(LIMIT_S / 4, 8, then_s=30)
    began = time.monotonic()
    async with cluster.client.post("/v1/completions", json={"stream": True}) as response:
        content = await response.read()
    assert 2 * LIMIT_S < time.monotonic() - began < 10
    events = [json.loads(line[6:]) for line in content.decode().split("\n\n") if line]
    assert events[:-1] == [{"token": number} for number in range(8)]
    assert events[-1]["error"]["code"] == 504
    assert events[-1]["error"]["message"] == "no byte of the answer passed for 0.5 s"
    await cluster.metric_is(1, "requests_total", outcome="timed_out")
