"""Engines that freeze: they accept connections and answer nothing, as under SIGSTOP. Probes notice, and legs that wait
for them go elsewhere long before their own deadlines."""

import asyncio
import json
import time
from typing import Any

import pytest
from aiohttp import web

pytestmark = pytest.mark.usefixtures("quick_probes")


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("UP_EVERY_S", 0.2), ("LOST_EVERY_S", 0.1), ("PROBE_S", 0.2)):
        monkeypatch.setattr(f"services.proxy.health.{name}", seconds)


def freeze(engine: Any) -> None:
    engine.frozen = True
    engine.act = engine.hang


async def ready(cluster: Any) -> bool:
    async with cluster.client.get("/ready") as response:
        return response.status == 200


async def wait_for(cluster: Any, state: bool) -> None:
    async with asyncio.timeout(5):
        while await ready(cluster) is not state:  # noqa: ASYNC110 - the proxy's state
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("role", ["prefills", "decodes"])
@pytest.mark.parametrize("stream", [False, True])
async def test_legs_to_an_engine_that_freezes_go_elsewhere(start_cluster: Any, role: str, stream: bool) -> None:
    cluster = await start_cluster(2, 2)
    victim = getattr(cluster, role)[0]
    freeze(victim)
    started = time.monotonic()
    async with cluster.client.post("/v1/completions", json={"stream": stream}) as response:
        assert response.status == 200
        answer = await response.read()
    assert answer.endswith(b"[DONE]\n\n") if stream else json.loads(answer)["by"].startswith("decode")
    assert time.monotonic() - started < 4  # not --first-token-timeout's 60
    assert victim.legs[0].cancelled
    assert cluster.metric("retries_total", phase=role[:-1], reason="timed_out") == 1
    for _ in range(4):  # now nobody waits for it
        assert (await asyncio.wait_for(cluster.complete(), 2))[0] == 200
    assert len(victim.legs) == 1


async def test_many_legs_move_at_once(start_cluster: Any) -> None:
    """More than the budget for reruns earns meanwhile."""
    cluster = await start_cluster(0, 2)
    freeze(cluster.decodes[0])
    results = await asyncio.gather(*(cluster.complete() for _ in range(300)))
    assert {status for status, _ in results} == {200}


@pytest.mark.parametrize("handover", ["store", "push"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_lone_frozen_decode_is_waited_for(
    start_cluster: Any, bootstrap: Any, stream: bool, handover: str
) -> None:
    """No other could do it, and it continues where it stopped; requests that come meanwhile wait too."""
    cluster = await start_cluster(1, 1, handover=handover, mooncake_bootstrap_port=bootstrap.port)
    engine, thawed = cluster.decodes[0], asyncio.Event()

    async def thaw(request: web.Request) -> web.StreamResponse:
        await thawed.wait()
        return await engine.answer(request)

    async def ask() -> tuple[int, bytes]:
        async with cluster.client.post("/v1/completions", json={"stream": stream}) as response:
            return response.status, await response.read()

    engine.frozen, engine.act = True, thaw
    before = asyncio.create_task(ask())
    await wait_for(cluster, False)
    meanwhile = asyncio.create_task(ask())
    await asyncio.sleep(1)
    engine.frozen = False
    thawed.set()
    for asked in (before, meanwhile):
        status, answer = await asyncio.wait_for(asked, 5)
        assert status == 200
        assert answer.endswith(b"[DONE]\n\n") if stream else json.loads(answer)["by"] == "decode0"
    assert len(engine.legs) == 2
    await wait_for(cluster, True)
    assert cluster.metric("retries_total", phase="decode") == 0


async def test_requests_waiting_for_a_frozen_decode_go_to_another_that_comes(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 2)
    freeze(cluster.decodes[0])
    cluster.decodes[1].healthy = False
    await asyncio.sleep(0.5)
    asked = asyncio.create_task(cluster.complete())
    await wait_for(cluster, False)
    await asyncio.sleep(0.5)
    assert not asked.done()
    cluster.decodes[1].healthy = True
    status, answer = await asyncio.wait_for(asked, 5)
    assert (status, answer["by"]) == (200, "decode1")
    assert cluster.decodes[0].legs[0].cancelled


async def test_a_stream_that_falls_silent_is_ended_with_an_error(start_cluster: Any, events: list[bytes]) -> None:
    cluster = await start_cluster(0, 1)
    engine = cluster.decodes[0]
    engine.next_event = asyncio.Semaphore(1)
    async with cluster.client.post("/v1/completions", json={"stream": True}) as response:
        assert await response.content.readexactly(len(events[0])) == events[0]
        engine.frozen = True
        rest = await asyncio.wait_for(response.read(), 5)
    assert "it no longer answers" in json.loads(rest.strip().removeprefix(b"data: "))["error"]["message"]
    assert cluster.metric("requests_total", code="200", outcome="broken") == 1


async def test_a_stream_that_goes_on_is_not_cut_off(start_cluster: Any, events: list[bytes]) -> None:
    """An engine too busy to answer probes is not lost to a client that gets tokens from it."""
    cluster = await start_cluster(0, 1)
    engine = cluster.decodes[0]

    async def go_on(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(40):
            await response.write(events[0])
            await asyncio.sleep(0.05)
        return response

    engine.act, engine.frozen = go_on, True
    async with cluster.client.post("/v1/completions", json={"stream": True}) as response:
        assert await response.read() == 40 * events[0]
    assert cluster.metric("engine_changes_total", change="lost") >= 1
    assert cluster.metric("requests_total", outcome="ok") == 1


async def test_nor_is_a_leg_that_gets_bytes_before_its_first_event(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 1)
    engine = cluster.decodes[0]
    engine.act, engine.frozen = engine.trickle, True
    streaming = asyncio.create_task(cluster.complete(stream=True))
    await asyncio.wait_for(engine.called.wait(), 5)
    await cluster.metric_is(1, "engine_changes_total", change="lost")
    await asyncio.sleep(0.5)
    assert not engine.legs[0].ended.is_set()
    streaming.cancel()
    await asyncio.gather(streaming, return_exceptions=True)


async def test_a_probe_that_fails_because_of_a_defect_is_not_the_last(
    start_cluster: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = await start_cluster(0, 1)
    broken = asyncio.Event()

    async def probe(_: str) -> None:
        broken.set()
        raise IndexError("list index out of range")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.proxy.health, "_probe", probe)
        await asyncio.wait_for(broken.wait(), 5)
    assert f"the probe of {cluster.decodes[0].address} failed" in caplog.text
    cluster.decodes[0].healthy = False
    await wait_for(cluster, False)
