"""How KV gets from prefill to decode: what both legs are told in each mode, how the mode is found out, and what follows
when one of the legs fails."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from services.proxy.core.engine import Handover, Role
from tests.unit.proxy.fake_engine import Bootstrap

BODY = b'{ "prompt":"hello", "max_tokens": 7 }'
JSON = {"Content-Type": "application/json"}
NIXL = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[4, 7]],
    "remote_engine_id": "p-0",
    "remote_host": "10.1.2.3",
    "remote_port": 5600,
    "tp_size": 2,
}


def learned(cluster: Any) -> list[Handover | None]:
    return [engine.handover for engine in cluster.proxy.fleet.engines(Role.PREFILL)]


# -- store


async def test_store_sends_the_clients_own_bytes_and_asks_for_nothing(start_cluster: Any) -> None:
    cluster = await start_cluster(handover="store")
    async with cluster.client.post("/v1/completions", data=BODY, headers=JSON) as response:
        assert response.status == 200
    assert "kv_transfer_params" not in cluster.prefills[0].legs[0].json
    assert cluster.decodes[0].legs[0].body == BODY


async def test_none_prefills_nothing(start_cluster: Any) -> None:
    cluster = await start_cluster(handover="none")
    assert (await cluster.complete())[1]["by"] == "decode0"
    assert cluster.prefills[0].legs == []
    assert cluster.metric("requests_total", outcome="ok") == 1


# -- pull


@pytest.mark.parametrize("handover", ["auto", "pull"])
async def test_pull_tells_decode_what_the_prefills_answer_said(start_cluster: Any, handover: str) -> None:
    cluster = await start_cluster(handover=handover)
    cluster.prefills[0].params = NIXL
    for _ in range(2):
        async with cluster.client.post("/v1/completions", data=BODY, headers=JSON) as response:
            assert "kv_transfer_params" not in await response.json()
        asked = cluster.prefills[0].legs[-1].json["kv_transfer_params"]
        assert (asked["do_remote_decode"], asked["do_remote_prefill"]) == (True, False)
        told = cluster.decodes[0].legs[-1]
        assert told.json == json.loads(BODY) | {"kv_transfer_params": NIXL}
        assert told.body.startswith(BODY[: BODY.rindex(b"}")])
    assert learned(cluster) == [Handover.PULL if handover == "auto" else None]


async def test_auto_keeps_asking_after_an_answer_without_params(start_cluster: Any) -> None:
    """An engine with NIXL answers so if a prompt is too short to be handed over."""
    cluster = await start_cluster()
    assert (await cluster.complete())[0] == 200
    assert learned(cluster) == [Handover.STORE]
    cluster.prefills[0].params = NIXL
    assert (await cluster.complete())[0] == 200
    assert learned(cluster) == [Handover.PULL]
    assert cluster.decodes[0].legs[-1].json["kv_transfer_params"] == NIXL


async def test_after_a_decode_that_may_have_fetched_the_next_computes(start_cluster: Any) -> None:
    cluster = await start_cluster(1, 2)
    cluster.prefills[0].params = NIXL
    cluster.decodes[0].act = cluster.decodes[0].answer_500
    async with cluster.client.post("/v1/completions", data=BODY, headers=JSON) as response:
        assert response.status == 200
    assert cluster.decodes[0].legs[0].json["kv_transfer_params"] == NIXL
    assert cluster.decodes[1].legs[0].body == BODY


async def test_after_a_decode_that_refused_the_next_fetches_the_kv(start_cluster: Any) -> None:
    cluster = await start_cluster(1, 2)
    cluster.prefills[0].params = NIXL
    cluster.decodes[0].act = cluster.decodes[0].answer_429
    assert (await cluster.complete())[0] == 200
    assert cluster.decodes[1].legs[0].json["kv_transfer_params"] == NIXL


# -- push


async def test_push_sends_both_legs_at_once_under_one_transfer_id(start_cluster: Any, bootstrap: Bootstrap) -> None:
    cluster = await start_cluster(mooncake_bootstrap_port=bootstrap.port)
    assert learned(cluster) == [Handover.PUSH]  # before the first request
    prefill, decode = cluster.prefills[0], cluster.decodes[0]

    async def wait_for_decode(request: web.Request) -> web.StreamResponse:
        await decode.called.wait()
        return await prefill.answer(request)

    async def wait_for_prefill(request: web.Request) -> web.StreamResponse:
        await prefill.called.wait()
        await prefill.legs[-1].ended.wait()
        return await decode.answer(request)

    prefill.act, decode.act = wait_for_decode, wait_for_prefill
    ids = set()
    for _ in range(2):
        async with cluster.client.post("/v1/completions", data=BODY, headers=JSON) as response:
            assert (await response.json())["by"] == "decode0"
        asked = prefill.legs[-1].json["kv_transfer_params"]
        id = asked["transfer_id"]
        assert asked == {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": id}
        assert decode.legs[-1].json == json.loads(BODY) | {
            "kv_transfer_params": {  # which MooncakeConnector (vLLM 0.32) requires in update_state_after_alloc
                "do_remote_decode": False,
                "do_remote_prefill": True,
                "transfer_id": id,
                "remote_engine_id": "engine-0",
                "remote_bootstrap_addr": f"http://127.0.0.1:{bootstrap.port}",
            }
        }
        assert "X-data-parallel-rank" not in prefill.legs[-1].headers
        ids.add(id)
    assert len(ids) == 2
    assert bootstrap.queries == 1
    await cluster.metric_is(2, "requests_total", outcome="ok")


async def test_a_pair_names_the_rank_whose_id_it_gives(start_cluster: Any) -> None:
    async with Bootstrap("rank-0", "rank-1").serving() as bootstrap:
        cluster = await start_cluster(mooncake_bootstrap_port=bootstrap.port)
        for _ in range(20):
            assert (await cluster.complete())[0] == 200
    seen = []
    for prefill, decode in zip(cluster.prefills[0].legs, cluster.decodes[0].legs, strict=True):
        seen.append(decode.json["kv_transfer_params"]["remote_engine_id"])
        assert seen[-1] == f"rank-{prefill.headers['X-data-parallel-rank']}"
    assert set(seen) == {"rank-0", "rank-1"}


async def test_a_failing_prefill_takes_the_decode_leg_down_with_it(start_cluster: Any, bootstrap: Bootstrap) -> None:
    """Which would wait for KV that never comes."""
    cluster = await start_cluster(1, 1, mooncake_bootstrap_port=bootstrap.port)
    prefill, decode = cluster.prefills[0], cluster.decodes[0]

    async def hang_once(request: web.Request) -> web.StreamResponse:
        decode.act = decode.answer
        return await decode.hang(request)

    async def fail(request: web.Request) -> web.StreamResponse:
        await decode.called.wait()
        return await prefill.answer_500(request)

    prefill.act, decode.act = fail, hang_once
    async with cluster.client.post("/v1/completions", data=BODY, headers=JSON) as response:
        assert response.status == 200
    first, second = decode.legs
    assert first.cancelled
    assert second.body == BODY
    assert cluster.metric("requests_total", outcome="decode_alone") == 1


async def test_if_a_prefill_sends_nothing_decode_computes(start_cluster: Any, bootstrap: Bootstrap) -> None:
    """As with an engine that has end tokens of its own; decode would wait for minutes. That is not a failure."""
    cluster = await start_cluster(2, 1, mooncake_bootstrap_port=bootstrap.port)
    decode = cluster.decodes[0]

    async def stop(request: web.Request) -> web.StreamResponse:
        await decode.called.wait()
        return web.json_response({"choices": [{"text": "", "finish_reason": "stop"}]})

    async def wait_for_kv(request: web.Request) -> web.StreamResponse:
        return await (decode.hang if "kv_transfer_params" in await request.json() else decode.answer)(request)

    for engine in cluster.prefills:
        engine.act = stop
    decode.act = wait_for_kv
    for _ in range(5):
        assert (await asyncio.wait_for(cluster.complete(), 5))[0] == 200
    assert [len(engine.legs) for engine in cluster.prefills] == [3, 2]
    assert cluster.metric("engine_breaker_state", role="prefill") == 0
    await cluster.metric_is(5, "requests_total", outcome="decode_alone")


async def test_a_failing_decode_takes_the_prefill_leg_down_with_it(start_cluster: Any, bootstrap: Bootstrap) -> None:
    cluster = await start_cluster(1, 2, mooncake_bootstrap_port=bootstrap.port)
    prefill, asked_again = cluster.prefills[0], asyncio.Event()

    async def hang_once(request: web.Request) -> web.StreamResponse:
        prefill.act = answer
        return await prefill.hang(request)

    async def answer(request: web.Request) -> web.StreamResponse:
        asked_again.set()
        return await prefill.answer(request)

    async def fetch(request: web.Request) -> web.StreamResponse:
        await asked_again.wait()
        return await cluster.decodes[1].answer(request)

    async def fail(request: web.Request) -> web.StreamResponse:
        await prefill.called.wait()
        return await cluster.decodes[0].answer_500(request)

    prefill.act, cluster.decodes[0].act, cluster.decodes[1].act = hang_once, fail, fetch
    assert (await cluster.complete())[1]["by"] == "decode1"
    first, second = prefill.legs
    assert first.cancelled
    ids = [leg.json["kv_transfer_params"]["transfer_id"] for leg in (first, second)]
    assert ids[0] != ids[1]
    assert cluster.decodes[1].legs[0].json["kv_transfer_params"]["transfer_id"] == ids[1]


async def test_a_stream_outlives_its_prefill_leg(start_cluster: Any, bootstrap: Bootstrap, events: list[bytes]) -> None:
    cluster = await start_cluster(mooncake_bootstrap_port=bootstrap.port)
    decode = cluster.decodes[0]
    decode.next_event = asyncio.Semaphore(1)
    async with cluster.client.post("/v1/completions", json={"stream": True}) as response:
        await asyncio.wait_for(cluster.prefills[0].legs[0].ended.wait(), 5)
        await cluster.metric_is(0, "engine_legs", role="prefill")
        assert cluster.metric("engine_legs", role="decode") == 1
        for _ in events:
            decode.next_event.release()
        assert await response.read() == b"".join(events)


async def test_push_without_a_bootstrap_server_is_decoded_alone(start_cluster: Any, closed_port: str) -> None:
    cluster = await start_cluster(handover="push", mooncake_bootstrap_port=int(closed_port.rpartition(":")[2]))
    assert (await cluster.complete())[0] == 200
    assert cluster.prefills[0].legs == []
    assert cluster.metric("requests_total", outcome="decode_alone") == 1


async def test_an_engine_that_comes_back_has_a_new_id(
    start_cluster: Any, bootstrap: Bootstrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.health.UP_EVERY_S", 0.1)
    monkeypatch.setattr("services.proxy.health.LOST_EVERY_S", 0.1)
    cluster = await start_cluster(mooncake_bootstrap_port=bootstrap.port)
    (engine,) = cluster.proxy.fleet.engines(Role.PREFILL)
    assert engine.transfer_ids == ("engine-0",)
    cluster.prefills[0].healthy = False
    async with asyncio.timeout(5):
        while engine.transfer_ids:  # noqa: ASYNC110 - the proxy's state
            await asyncio.sleep(0.01)
    bootstrap.engine_ids = ("engine-1",)
    cluster.prefills[0].healthy = True
    async with asyncio.timeout(5):
        while not cluster.proxy.fleet.candidates(Role.PREFILL, 0):  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert engine.transfer_ids == ("engine-1",)  # known before it is offered


# -- several sequences

SEVERAL: list[dict[str, Any]] = [
    {"prompt": ["hello", "you"]},
    {"prompt": [[1, 2], [3]]},
    {"n": 3},
    {"best_of": 2},
    {"use_beam_search": True},
]


@pytest.mark.parametrize("fields", SEVERAL)
@pytest.mark.parametrize("handover", [Handover.PULL, Handover.PUSH])
async def test_several_sequences_are_decoded_without_a_handover(
    start_cluster: Any, bootstrap: Bootstrap, handover: Handover, fields: dict[str, Any]
) -> None:
    cluster = await start_cluster(mooncake_bootstrap_port=bootstrap.port if handover is Handover.PUSH else 9)
    cluster.prefills[0].params = NIXL
    assert (await cluster.complete())[0] == 200
    assert learned(cluster) == [handover]
    for stream in (False, True):
        body = json.dumps({"prompt": "hello", "stream": stream} | fields).encode()
        async with cluster.client.post("/v1/completions", data=body, headers=JSON) as response:
            assert response.status == 200
            await response.read()
        assert cluster.decodes[0].legs[-1].body == body
    assert len(cluster.prefills[0].legs) == 1
    await cluster.metric_is(3, "requests_total", outcome="ok")
    assert (await cluster.complete(prompt=["hello"], n=1))[0] == 200  # a list of one is one prompt
    assert "kv_transfer_params" in cluster.decodes[0].legs[-1].json


@pytest.mark.parametrize("fields", SEVERAL)
async def test_several_sequences_are_prefilled_into_a_store(start_cluster: Any, fields: dict[str, Any]) -> None:
    """Even where the proxy does not know yet how the engine hands over: it is not asked to keep anything then."""
    for handover in ("store", "auto"):
        cluster = await start_cluster(handover=handover)
        cluster.prefills[0].params = NIXL
        assert (await cluster.complete(**fields))[0] == 200
        (prefill,), (decode,) = cluster.prefills[0].legs, cluster.decodes[0].legs
        assert prefill.json["prompt"] == decode.json["prompt"]
        assert (prefill.json.get("n", 1), prefill.json["max_tokens"]) == (1, 1)
        assert "kv_transfer_params" not in prefill.json
        assert "kv_transfer_params" not in decode.json
        assert learned(cluster) == [None]


async def test_a_chat_with_several_answers_is_decoded_without_a_handover(
    start_cluster: Any, bootstrap: Bootstrap
) -> None:
    cluster = await start_cluster(mooncake_bootstrap_port=bootstrap.port)
    body = b'{"messages": [{"role": "user", "content": "hello"}], "n": 2}'
    async with cluster.client.post("/v1/chat/completions", data=body, headers=JSON) as response:
        assert response.status == 200
    assert (cluster.prefills[0].legs, cluster.decodes[0].legs[0].body) == ([], body)
