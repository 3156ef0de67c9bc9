"""Prefill engines that refuse what others accept: they serve another model, or want another key. And requests that all
engines refuse, which is no engine's fault."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from services.proxy.core.engine import Address, Breaker, Role
from services.proxy.core.fleet import FAILURES_MAX, SAY_EVERY_S, Fleet
from tests.unit.proxy.fake_engine import Bootstrap

Act = Callable[[web.Request], Awaitable[web.StreamResponse]]


def refusing(status: int) -> Act:
    async def act(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no", "code": status}}, status=status)

    return act


def asked(cluster: Any) -> list[str]:
    """Which engines, prefills first."""
    return [name for name, _ in itertools.groupby(name for name, path in cluster.legs if path == "/v1/completions")]


def breaker_of(cluster: Any, engine: Any) -> Breaker:
    return cluster.proxy.fleet.get(Role.PREFILL, engine.address).breaker(time.monotonic())


def keep_away(cluster: Any, engine: Any) -> None:
    """For longer than the test takes, once its breaker opens."""
    cluster.proxy.fleet.get(Role.PREFILL, engine.address).open_s = 600


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_request_one_prefill_refuses_goes_to_another_and_the_first_is_avoided(
    start_cluster: Any, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = await start_cluster(2, 1)
    misfit, other = cluster.prefills
    misfit.act = refusing(status)
    keep_away(cluster, misfit)
    assert (await cluster.complete())[0] == 200
    assert asked(cluster) == ["prefill0", "prefill1", "decode0"]
    for _ in range(12):
        assert (await cluster.complete())[0] == 200
    assert len([leg for leg in misfit.legs if leg.path == "/v1/completions"]) == FAILURES_MAX
    assert breaker_of(cluster, misfit) is Breaker.OPEN
    assert cluster.metric("retries_total", phase="prefill", engine=misfit.address, reason="refused") == FAILURES_MAX
    assert cluster.metric("prefill_seconds_count", engine=misfit.address, outcome="refused") == FAILURES_MAX
    await cluster.metric_is(13, "requests_total", outcome="ok")  # no request went without its KV
    assert breaker_of(cluster, other) is Breaker.CLOSED
    said = [text for text in caplog.messages if f"{misfit.address} answered {status}" in text]
    assert len(said) == 1


@pytest.mark.parametrize(("status", "reason"), [(404, "refused"), (400, "invalid"), (422, "invalid")])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_lone_prefill_that_refuses_what_decode_accepts_has_failed(
    start_cluster: Any, status: int, reason: str, stream: bool
) -> None:
    cluster = await start_cluster(1, 1)
    misfit = cluster.prefills[0]
    misfit.act = refusing(status)
    keep_away(cluster, misfit)
    for _ in range(FAILURES_MAX + 2):
        async with cluster.client.post("/v1/completions", json={"stream": stream}) as response:
            assert response.status == 200
            await response.read()
    assert cluster.metric("retries_total", phase="prefill", reason=reason) == FAILURES_MAX
    await cluster.metric_is(FAILURES_MAX + 2, "requests_total", outcome="decode_alone")
    assert breaker_of(cluster, misfit) is Breaker.OPEN
    cluster.proxy.fleet.get(Role.PREFILL, misfit.address).open_until = time.monotonic()
    misfit.act = misfit.answer  # it has the model now
    for _ in range(3):
        assert (await cluster.complete())[0] == 200
    assert breaker_of(cluster, misfit) is Breaker.CLOSED
    await cluster.metric_is(3, "requests_total", outcome="ok")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
@pytest.mark.parametrize("event", [False, True])
async def test_a_request_that_decode_refuses_too_is_not_held_against_a_prefill(
    start_cluster: Any, status: int, event: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = await start_cluster(2, 1)
    decode = cluster.decodes[0]
    for engine in (*cluster.prefills, decode):
        engine.act = refusing(status)
    if event:
        decode.act = lambda request: decode.error_first(request, code=status)
    for _ in range(2 * FAILURES_MAX):
        async with cluster.client.post("/v1/completions", json={"stream": True}) as response:
            assert response.status == (200 if event else status)
            await response.read()
    assert cluster.metric("retries_total") == 0
    await cluster.metric_is(2 * FAILURES_MAX, "requests_total", outcome="engine_error")
    for engine in cluster.proxy.fleet.engines(Role.PREFILL):
        assert (engine.failures, engine.open_until) == (0, None)
    assert "answered" not in caplog.text


async def test_a_pairs_refusing_prefill_does_not_leave_decode_waiting(start_cluster: Any, bootstrap: Bootstrap) -> None:
    cluster = await start_cluster(2, 1, mooncake_bootstrap_port=bootstrap.port)
    misfit, other = cluster.prefills
    decode = cluster.decodes[0]

    async def wait_for_kv(request: web.Request) -> web.StreamResponse:
        if len(decode.legs) == 1:
            return await decode.hang(request)
        return await decode.answer(request)

    async def refuse(request: web.Request) -> web.StreamResponse:
        await decode.called.wait()
        return await refusing(404)(request)

    misfit.act, decode.act = refuse, wait_for_kv
    assert (await asyncio.wait_for(cluster.complete(), 5))[0] == 200
    assert decode.legs[0].cancelled
    assert len(other.legs) == 1
    ids = [leg.json["kv_transfer_params"]["transfer_id"] for leg in decode.legs]
    assert ids[1] == other.legs[0].json["kv_transfer_params"]["transfer_id"] != ids[0]
    assert cluster.metric("retries_total", phase="prefill", reason="refused") == 1


@pytest.mark.parametrize("status", [200, 204])
async def test_a_prefills_answer_without_a_body_is_a_failure(start_cluster: Any, status: int) -> None:
    cluster = await start_cluster(2, 1)

    async def act(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    cluster.prefills[0].act = act
    assert (await cluster.complete())[0] == 200
    assert asked(cluster) == ["prefill0", "prefill1", "decode0"]
    assert cluster.metric("retries_total", phase="prefill", reason="broken") == 1


def test_a_misfit_is_reported_only_now_and_then() -> None:
    fleet = Fleet()
    fleet.add(Role.PREFILL, Address("a:1"))
    (engine,) = fleet.engines(Role.PREFILL)
    said = []
    for now in (0.0, 1.0, SAY_EVERY_S - 1, SAY_EVERY_S, SAY_EVERY_S + 1):
        leg = fleet.book(engine, 1, now)
        said.append(fleet.misfit(leg, now))
        fleet.ended(leg)
    assert said == [True, False, False, True, False]
    assert engine.breaker(1.5) is Breaker.OPEN
