"""Engines that are slow but well: a request leaves one only for another that is well; otherwise it waits."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest
from aiohttp import web

from services.proxy.core.engine import Address, Probe, Role
from services.proxy.core.fleet import FAILURES_MAX, Fleet
from services.proxy.core.outcomes import Outcome
from services.proxy.core.router import Router
from services.proxy.core.routing import RERUNS_MAX, Decode, Route, Unserved
from services.proxy.core.scheduling import Ask, make_policy
from tests.unit.proxy.fake_engine import Bootstrap


def slow(engine: Any, seconds: float) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def act(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        response: web.StreamResponse = await engine.answer(request)
        return response

    return act


async def stream(cluster: Any) -> tuple[int, bytes]:
    async with cluster.client.post("/v1/completions", json={"prompt": "x", "stream": True}) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("prefills", [0, 1])
async def test_the_only_engines_are_waited_for(start_cluster: Any, events: list[bytes], prefills: int) -> None:
    cluster = await start_cluster(prefills, 1, first_token_timeout=0.3)
    for engine in cluster.prefills + cluster.decodes:
        engine.act = slow(engine, 1)
    assert await stream(cluster) == (200, b"".join(events))
    assert [len(engine.legs) for engine in cluster.prefills + cluster.decodes] == [1] * (prefills + 1)
    assert not cluster.decodes[0].legs[0].cancelled
    assert cluster.metric("retries_total", phase="decode") == 0


async def test_if_all_are_slow_the_last_one_is_waited_for(start_cluster: Any, events: list[bytes]) -> None:
    cluster = await start_cluster(0, 2, first_token_timeout=0.3)
    for engine in cluster.decodes:
        engine.act = slow(engine, 1)
    assert await stream(cluster) == (200, b"".join(events))
    assert [engine.legs[0].cancelled for engine in cluster.decodes] == [True, False]
    assert [len(engine.legs) for engine in cluster.decodes] == [1, 1]
    assert cluster.metric("retries_total", phase="decode", reason="timed_out") == 1


async def test_a_request_moves_to_an_engine_that_comes_later(
    start_cluster: Any, events: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.health.LOST_EVERY_S", 0.1)
    cluster = await start_cluster(0, 1, first_token_timeout=0.3, admin_api_key="k")
    cluster.decodes[0].act = slow(cluster.decodes[0], 30)
    streaming = asyncio.create_task(stream(cluster))
    await asyncio.sleep(1)
    assert not streaming.done()
    later = await start_cluster(0, 1)
    cluster.proxy.fleet.add(Role.DECODE, Address(later.decodes[0].address))
    cluster.proxy.health.follow()
    assert await asyncio.wait_for(streaming, 5) == (200, b"".join(events))
    assert cluster.decodes[0].legs[0].cancelled


async def test_a_request_does_not_move_to_a_failing_engine(start_cluster: Any, events: list[bytes]) -> None:
    cluster = await start_cluster(0, 2, first_token_timeout=0.3)
    failing, well = cluster.proxy.fleet.engines(Role.DECODE)
    failing.failures, failing.open_until = FAILURES_MAX, time.monotonic() + 60
    cluster.decodes[1].act = slow(cluster.decodes[1], 1)
    assert await stream(cluster) == (200, b"".join(events))
    assert cluster.decodes[0].legs == []
    assert well.failures == 0


async def test_a_stream_that_never_begins_ends_with_its_request(start_cluster: Any) -> None:
    cluster = await start_cluster(1, 1, first_token_timeout=0.2, request_timeout=1)
    cluster.decodes[0].act = cluster.decodes[0].hang
    started = time.monotonic()
    status, answer = await cluster.complete(stream=True)
    assert (status, answer["error"]["code"]) == (504, 504)
    assert 0.9 < time.monotonic() - started < 3
    assert len(cluster.decodes[0].legs) == 1


async def test_decode_gets_its_own_time_after_a_pairs_prefill(
    start_cluster: Any, bootstrap: Bootstrap, events: list[bytes]
) -> None:
    """Its wait for the prefill is not its own slowness."""
    cluster = await start_cluster(1, 2, first_token_timeout=1, mooncake_bootstrap_port=bootstrap.port)
    prefill, decode = cluster.prefills[0], cluster.decodes[0]
    prefill.act = slow(prefill, 0.7)

    async def act(request: web.Request) -> web.StreamResponse:
        await prefill.called.wait()
        await prefill.legs[0].ended.wait()
        return await slow(decode, 0.7)(request)

    decode.act = act
    assert await stream(cluster) == (200, b"".join(events))
    assert (len(decode.legs), cluster.decodes[1].legs) == (1, [])
    assert cluster.metric("retries_total") == 0


async def test_a_pairs_hanging_prefill_is_not_its_decodes_fault(start_cluster: Any, bootstrap: Bootstrap) -> None:
    cluster = await start_cluster(1, 2, first_token_timeout=0.3, mooncake_bootstrap_port=bootstrap.port)
    first, _ = cluster.decodes
    cluster.prefills[0].act = cluster.prefills[0].hang

    async def act(request: web.Request) -> web.StreamResponse:
        waits = (await request.json()).get("kv_transfer_params") is not None
        response: web.StreamResponse = await (first.hang if waits else first.answer)(request)
        return response

    for decode in cluster.decodes:
        decode.act = act
    assert (await stream(cluster))[0] == 200
    assert cluster.metric("retries_total", phase="prefill", reason="timed_out") == 1
    assert cluster.metric("retries_total", phase="decode") == 0


# -- routes alone


def routes(decodes: int) -> Router:
    fleet = Fleet()
    for number in range(decodes):
        fleet.add(Role.DECODE, Address(f"d{number}"))
    return Router(fleet, {role: make_policy("round_robin", Random(1)) for role in Role})


def begun(router: Router, *, repeatable: bool = True) -> Route:
    route = Route(router, Ask(), prefill=False, repeatable=repeatable)
    route.first(0)
    return route


def test_a_late_leg_moves_to_an_engine_that_is_well_and_may_be_asked() -> None:
    router = routes(2)
    route = begun(router)
    assert route.may_move(0)
    assert isinstance(route.next(Role.DECODE, Outcome.TIMED_OUT, 0), Decode)
    assert not route.may_move(0)  # none is left
    route.close()
    assert not begun(routes(1)).may_move(0)
    assert not begun(routes(2), repeatable=False).may_move(0)
    for probe in (Probe.REFUSED, Probe.NO_ANSWER):
        router = routes(2)
        router.fleet.probed(router.fleet.engines(Role.DECODE)[1], probe)
        assert not begun(router).may_move(0)


def test_a_late_leg_has_no_more_reruns_than_others() -> None:
    route = begun(routes(9))
    for _ in range(RERUNS_MAX):
        assert route.may_move(0)
        route.next(Role.DECODE, Outcome.TIMED_OUT, 0)
    assert not route.may_move(0)


def test_legs_told_to_move_do_so_even_if_all_move_at_once() -> None:
    router = routes(2)
    late = [begun(router) for _ in range(20)]
    router.budget._left = 5.0
    moving = [route for route in late if route.may_move(0)]
    assert len(moving) == 5
    assert all(route.may_move(0) for route in moving)  # asking again costs nothing more
    decisions = [route.next(Role.DECODE, Outcome.TIMED_OUT, 0) for route in moving]
    assert not any(isinstance(decision, Unserved) for decision in decisions)
    for route in late:
        route.close()
