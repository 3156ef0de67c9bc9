"""Engines that misbehave: what the client gets, which legs are sent, and that nothing is left behind."""

import asyncio
import itertools
import json
import os
import time
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.proxy.core.engine import Role

BEFORE_THE_FIRST_BYTE = [
    "reset",
    "garbage",
    "garbage_chunk",
    "close_before_first_byte",
    "answer_nothing",
]
PURE = ["/v1/messages", "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/chat/completions/batch"]


def act(engine: Any, how: str) -> None:
    engine.act = getattr(engine, how)


def asked(cluster: Any) -> list[str]:
    """Which engines, prefills first. One asked again because it reset an idle connection counts once."""
    return [name for name, _ in itertools.groupby(name for name, _ in cluster.legs)]


@pytest.mark.parametrize("how", ["answer_500", "redirect", *BEFORE_THE_FIRST_BYTE[:-1]])
async def test_another_prefill_takes_over(start_cluster: Any, how: str) -> None:
    cluster = await start_cluster(2, 1)
    act(cluster.prefills[0], how)
    assert (await cluster.complete())[0] == 200
    assert asked(cluster) == ["prefill0", "prefill1", "decode0"]
    assert cluster.metric("retries_total", phase="prefill", reason="broken") == 1
    assert cluster.metric("requests_total", path="/v1/completions", code="200", outcome="ok") == 1


async def test_unreachable_prefills_leave_decode_alone(start_cluster: Any, closed_port: str) -> None:
    cluster = await start_cluster(0, 1, prefill=(closed_port,))
    status, answer = await cluster.complete()
    assert (status, answer["by"]) == (200, "decode0")
    assert cluster.metric("retries_total", phase="prefill") == 0  # the health check came first
    assert cluster.metric("requests_total", path="/v1/completions", code="200", outcome="decode_alone") == 1


async def test_a_prefill_that_hangs_is_given_up(start_cluster: Any) -> None:
    cluster = await start_cluster(2, 1, first_token_timeout=0.3)
    act(cluster.prefills[0], "hang")
    started = time.monotonic()
    assert (await cluster.complete())[0] == 200
    assert 0.29 <= time.monotonic() - started < 3  # the loop counts in whole milliseconds
    await asyncio.wait_for(cluster.prefills[0].legs[0].ended.wait(), 5)
    assert cluster.prefills[0].legs[0].cancelled
    assert cluster.metric("retries_total", phase="prefill", reason="timed_out") == 1


async def test_a_prefills_4xx_is_left_for_decode_to_confirm(start_cluster: Any) -> None:
    cluster = await start_cluster(2, 1)
    act(cluster.prefills[0], "answer_400")
    act(cluster.decodes[0], "answer_400")
    status, answer = await cluster.complete()
    assert (status, answer) == (400, {"error": {"message": "bad temperature", "by": "decode0"}})
    assert asked(cluster) == ["prefill0", "decode0"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", BEFORE_THE_FIRST_BYTE)
async def test_another_decode_takes_over_before_the_first_byte(start_cluster: Any, how: str, stream: bool) -> None:
    cluster = await start_cluster(1, 2)
    act(cluster.decodes[0], how)
    async with cluster.client.post("/v1/completions", json={"stream": stream}) as response:
        assert response.status == 200
        answer = await response.read()
    assert answer.endswith(b"data: [DONE]\n\n") if stream else json.loads(answer)["by"] == "decode1"
    assert asked(cluster) == ["prefill0", "decode0", "decode1"]
    assert cluster.decodes[1].legs[0].body == cluster.decodes[0].legs[0].body
    assert cluster.metric("retries_total", phase="decode", reason="broken") == 1


async def test_a_dead_decode_is_not_asked(start_cluster: Any, closed_port: str) -> None:
    cluster = await start_cluster(1, 1, decode=(closed_port,))
    assert (await cluster.complete())[0] == 200
    assert cluster.metric("retries_total", phase="decode") == 0


async def test_engines_that_died_since_their_probe_cost_only_a_connection_attempt(
    start_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.health.UP_EVERY_S", 60)
    cluster = await start_cluster(2, 2)
    for engine in (cluster.prefills[0], cluster.decodes[0]):
        await engine.end()
    assert (await cluster.complete())[0] == 200
    assert asked(cluster) == ["prefill1", "decode1"]
    for phase in ("prefill", "decode"):
        assert cluster.metric("retries_total", phase=phase, reason="unreachable") == 1
    assert (await cluster.complete())[0] == 200
    assert cluster.metric("retries_total") == 2  # known by now


async def test_an_engine_that_refuses_all_connections_from_a_request_on_has_died(
    start_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have died of what it was sent over an idle connection: that counts as a rerun."""
    monkeypatch.setattr("services.proxy.health.UP_EVERY_S", 60)
    cluster = await start_cluster(0, 3)

    async def die(request: web.Request) -> web.StreamResponse:
        engine = next(engine for engine in cluster.decodes if engine.address == request.host)
        await engine.stop_listening()
        return await engine.reset(request)

    for engine in cluster.decodes[:2]:
        engine.act = die
    assert (await cluster.complete())[1]["by"] == "decode2"
    assert cluster.metric("retries_total", phase="decode", reason="died") == 2
    assert len(cluster.decodes[0].legs) == 1


@pytest.mark.parametrize("how", ["hang", "trickle"])
async def test_a_stream_that_does_not_begin_is_started_elsewhere(start_cluster: Any, how: str) -> None:
    cluster = await start_cluster(0, 2, first_token_timeout=0.3)
    act(cluster.decodes[0], how)
    async with cluster.client.post("/v1/completions", json={"stream": True}) as response:
        assert response.status == 200
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    assert cluster.decodes[0].legs[0].cancelled


async def test_a_decodes_4xx_is_the_answer(start_cluster: Any) -> None:
    cluster = await start_cluster(1, 2)
    act(cluster.decodes[0], "answer_400")
    status, answer = await cluster.complete(stream=True)
    assert (status, answer["error"]["by"]) == (400, "decode0")
    assert asked(cluster) == ["prefill0", "decode0"]


@pytest.mark.parametrize("how", ["answer_500", "answer_429", "error_first"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_decode_that_reports_failure_is_passed_over(start_cluster: Any, how: str, stream: bool) -> None:
    cluster = await start_cluster(1, 2)
    act(cluster.decodes[0], how)
    async with cluster.client.post("/v1/completions", json={"stream": stream}) as response:
        assert response.status == 200
        assert b"boom" not in await response.read()
    assert asked(cluster) == ["prefill0", "decode0", "decode1"]
    assert cluster.metric("requests_total", code="200", outcome="ok") == 1


@pytest.mark.parametrize("how", ["answer_500", "answer_429"])
async def test_a_decodes_own_error_is_the_answer_if_there_is_no_better_one(start_cluster: Any, how: str) -> None:
    cluster = await start_cluster(1, 2)
    for engine in cluster.decodes:
        act(engine, how)
    async with cluster.client.post("/v1/completions", json={"stream": True}) as response:
        assert response.status == int(how[-3:])
        assert response.headers["X-Engine"] == "decode1"
        assert response.headers["Content-Type"] == "application/json; charset=utf-8"
        body = await response.read()
        assert response.headers["Content-Length"] == str(len(body))
        assert json.loads(body) == {"error": {"message": "boom", "by": "decode1"}}
    assert asked(cluster) == ["prefill0", "decode0", "decode1"]
    assert cluster.metric("requests_total", code=how[-3:], outcome="engine_error") == 1


async def test_an_error_that_begins_every_stream_becomes_an_error_status(start_cluster: Any) -> None:
    cluster = await start_cluster(1, 2)
    for engine in cluster.decodes:
        act(engine, "error_first")
    status, answer = await cluster.complete(stream=True)
    assert (status, answer) == (500, {"error": {"message": "boom: decode1", "code": 500}})
    assert cluster.metric("requests_total", code="500", outcome="engine_error") == 1


async def test_an_error_event_that_blames_the_client_is_its_answer(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 2)
    cluster.decodes[0].act = lambda request: cluster.decodes[0].error_first(request, code=400)
    async with cluster.client.post("/v1/completions", json={"stream": True}) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        assert b"boom: decode0" in await response.read()
    assert asked(cluster) == ["decode0"]


async def test_without_a_decode_left_there_is_a_503_at_once(start_cluster: Any, closed_port: str) -> None:
    cluster = await start_cluster(1, 1, decode=(closed_port,))
    act(cluster.decodes[0], "reset")
    async with cluster.client.post("/v1/completions", json={}) as response:
        assert (response.status, response.content_type) == (503, "application/json")
        assert response.headers["Retry-After"] == "1"
        error = (await response.json())["error"]
    assert error["type"] == "server_error"
    assert error["message"] == "no decode engine is available: none of 1 asked has answered"
    assert cluster.metric("requests_total", path="/v1/completions", code="503", outcome="unserved") == 1


@pytest.mark.parametrize("path", PURE)
async def test_a_request_that_only_computes_an_answer_goes_to_another_engine(start_cluster: Any, path: str) -> None:
    cluster = await start_cluster(0, 2)
    act(cluster.decodes[0], "reset")
    async with cluster.client.post(path, json={}) as response:
        assert (response.status, (await response.json())["by"]) == (200, "decode1")


async def test_a_request_that_may_have_run_is_not_repeated(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 2)
    act(cluster.decodes[0], "reset")
    async with cluster.client.post("/v1/audio/speech", json={}) as response:
        assert response.status == 502
        assert "may have run" in (await response.json())["error"]["message"]
    assert len(cluster.decodes[0].legs) == 1  # nor over a new connection
    act(cluster.decodes[1], "answer_500")
    async with cluster.client.post("/v1/audio/speech", json={}) as response:
        assert (response.status, (await response.json())["error"]["by"]) == (500, "decode1")
    assert asked(cluster) == ["decode0", "decode1"]
    act(cluster.decodes[1], "reset")
    cluster.decodes[0].act = cluster.decodes[0].answer
    async with cluster.client.get("/v1/files") as response:  # but reading is
        assert (await response.json())["by"] == "decode0"


@pytest.mark.parametrize(("how", "whole"), [("break_off", 2), ("garbage_later", 1)])
async def test_after_the_first_byte_a_failure_ends_the_stream_with_an_error_event(
    start_cluster: Any, events: list[bytes], how: str, whole: int
) -> None:
    cluster = await start_cluster(1, 2)
    act(cluster.decodes[0], how)
    async with cluster.client.post("/v1/completions", json={"stream": True}) as response:
        assert response.status == 200
        content = await response.read()  # complete: the proxy ended the body properly
    sent = [line for line in content.split(b"\n\n") if line.strip()]
    assert [line + b"\n\n" for line in sent[:-1]] == events[:whole]
    error = json.loads(sent[-1].removeprefix(b"data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", 502)
    assert asked(cluster) == ["prefill0", "decode0"]
    assert cluster.metric("requests_total", path="/v1/completions", code="200", outcome="broken") == 1


async def test_half_a_json_body_is_never_taken_for_a_whole_one(cluster: Any) -> None:
    act(cluster.decodes[0], "break_off_json")
    async with cluster.client.post("/v1/completions", json={}) as response:
        assert response.status == 200
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            await response.read()
    async with cluster.client.get("/health") as response:
        assert response.status == 200


async def test_a_request_has_a_deadline_before_its_first_byte(start_cluster: Any) -> None:
    cluster = await start_cluster(1, 1, request_timeout=0.5)
    act(cluster.decodes[0], "hang")
    status, answer = await cluster.complete()
    assert (status, answer["error"]["code"]) == (504, 504)
    await asyncio.wait_for(cluster.decodes[0].legs[0].ended.wait(), 5)
    assert cluster.decodes[0].legs[0].cancelled
    assert cluster.metric("requests_total", path="/v1/completions", code="504", outcome="timed_out") == 1


async def test_a_stream_has_a_deadline_after_its_first_byte(start_cluster: Any, events: list[bytes]) -> None:
    cluster = await start_cluster(1, 1, request_timeout=0.5)
    cluster.decodes[0].next_event = asyncio.Semaphore(1)
    async with cluster.client.post("/v1/completions", json={"stream": True}) as response:
        content = await asyncio.wait_for(response.read(), 5)
    assert content.startswith(events[0])
    assert json.loads(content.split(b"data: ")[-1])["error"]["code"] == 504
    assert cluster.metric("requests_total", path="/v1/completions", code="200", outcome="timed_out") == 1


@pytest.mark.parametrize(
    ("setting", "code", "outcome"),
    [("request_timeout", "200", "timed_out"), ("slow_client_timeout", "499", "cancelled")],
)
async def test_a_client_that_does_not_read_is_given_up(
    start_cluster: Any, setting: str, code: str, outcome: str
) -> None:
    cluster = await start_cluster(0, 1, **{setting: 1})

    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(1_000):
            await response.write(b"x" * 100_000)
        return response

    cluster.decodes[0].act = flood
    host, port = cluster.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(b"GET /v1/flood HTTP/1.1\r\nHost: x\r\n\r\n")
    await cluster.decodes[0].called.wait()
    await asyncio.wait_for(cluster.decodes[0].legs[0].ended.wait(), 5)
    assert cluster.decodes[0].legs[0].cancelled
    await cluster.metric_is(1, "requests_total", path="/v1/{tail}", code=code, outcome=outcome)
    writer.close()
    (engine,) = cluster.proxy.fleet.engines(Role.DECODE)
    assert (engine.requests, engine.failures) == (0, 0)  # it is not the engine's fault


async def test_an_idle_connection_that_the_engine_closed_costs_no_engine(start_cluster: Any) -> None:
    """The engine closes each connection at its second request, as if its idle time had just run out."""
    served: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        turns = 0
        while turns < 2:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:  # the test is over
                break
            if head.startswith(b"POST"):
                lines = head.lower().split(b"\r\n")
                await reader.readexactly(next(int(line[15:]) for line in lines if line.startswith(b"content-length:")))
                served.append(turns)
                turns += 1
            if turns < 2:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
                await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        address = "{}:{}".format(*server.sockets[0].getsockname())
        cluster = await start_cluster(0, 0, decode=(address,))
        assert await cluster.complete() == (200, {})
        assert await cluster.complete() == (200, {})
    assert served == [0, 1, 0]
    assert not cluster.metric("retries_total", phase="decode", reason="broken")


async def test_a_drain_ends_even_if_a_request_does_not(
    cluster: Any, events: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.app.DRAIN_S", 0.3)
    cluster.decodes[0].next_event = asyncio.Semaphore(1)
    async with cluster.client.post("/v1/completions", json={"stream": True}) as response:
        assert await response.content.readany() == events[0]
        await asyncio.wait_for(cluster.stop(), 5)
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            await response.read()
    await asyncio.wait_for(cluster.decodes[0].legs[0].ended.wait(), 5)
    assert cluster.decodes[0].legs[0].cancelled


@pytest.mark.parametrize("how", [*BEFORE_THE_FIRST_BYTE, "break_off", "garbage_later", "error_first", "answer_500"])
async def test_nothing_is_left_behind(start_cluster: Any, closed_port: str, how: str) -> None:
    """Neither tasks nor file descriptors grow with the requests; what is under way is checked after every test."""
    cluster = await start_cluster(2, 2, prefill=(closed_port,), decode=(closed_port,))
    act(cluster.prefills[0], "reset")
    act(cluster.decodes[0], how)

    async def counts() -> tuple[int, int]:
        for n in range(12):
            async with cluster.client.post("/v1/completions", json={"stream": n % 2 == 0}) as response:
                await response.read()
        await asyncio.sleep(0.2)
        return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))

    tasks, descriptors = await counts()
    for _ in range(3):
        later = await counts()
    assert later[0] < tasks + 20  # idle connections and probes vary; 36 requests that each leave one would exceed this
    assert later[1] < descriptors + 20
    assert cluster.metric("in_flight") == 0
