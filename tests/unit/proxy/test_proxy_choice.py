"""The choice of engines by each policy, through the whole proxy."""

import asyncio
import random
from typing import Any

import pytest


async def test_short_prompts_go_straight_to_decode(start_cluster: Any) -> None:
    cluster = await start_cluster(prefill_min_tokens=10)
    assert (await cluster.complete(prompt="x" * 36))[0] == 200
    assert cluster.prefills[0].legs == []
    assert (await cluster.complete(prompt="x" * 37))[0] == 200
    assert (await cluster.complete(prompt=list(range(10))))[0] == 200
    assert len(cluster.prefills[0].legs) == 2


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "input_audio"}])
async def test_a_chat_with_images_or_sounds_is_prefilled_however_short(start_cluster: Any, part: Any) -> None:
    cluster = await start_cluster(prefill_min_tokens=5_000)
    for content, prefilled in (("hi", 0), ([{"type": "text", "text": "hi"}], 0), ([{"text": "hi"}, part], 1)):
        body = {"messages": [{"role": "user", "content": content}]}
        async with cluster.client.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200
        assert len(cluster.prefills[0].legs) == prefilled


async def test_least_loaded_avoids_a_busy_engine(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 3, scheduling="least_loaded")
    cluster.decodes[0].act = cluster.decodes[0].hang
    busy = asyncio.create_task(cluster.complete())
    await asyncio.wait_for(cluster.decodes[0].called.wait(), 5)
    assert {(await cluster.complete())[1]["by"] for _ in range(6)} == {"decode1", "decode2"}
    busy.cancel()
    await asyncio.gather(busy, return_exceptions=True)


async def test_least_loaded_prefill_goes_by_tokens(start_cluster: Any) -> None:
    cluster = await start_cluster(2, 1, prefill_scheduling="least_loaded")
    for engine in cluster.prefills:
        engine.act = engine.hang
    long = asyncio.create_task(cluster.complete(prompt="x" * 4000))
    await asyncio.wait_for(cluster.prefills[0].called.wait(), 5)
    short = [asyncio.create_task(cluster.complete(prompt="x" * 40)) for _ in range(5)]
    async with asyncio.timeout(5):
        while len(cluster.prefills[1].legs) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(cluster.prefills[0].legs) == 1
    for request in (long, *short):
        request.cancel()
    await asyncio.gather(long, *short, return_exceptions=True)


async def test_power_of_two_uses_all_engines(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 4, scheduling="power_of_two")
    cluster.proxy._random.seed(1)
    assert {(await cluster.complete())[1]["by"] for _ in range(40)} == {"decode0", "decode1", "decode2", "decode3"}


async def test_prefix_affinity_sends_prompts_that_begin_alike_to_one_prefill(start_cluster: Any) -> None:
    cluster = await start_cluster(3, 2, prefill_scheduling="prefix_affinity")
    draw = random.Random(1)
    heads = ["".join(draw.choices("abc", k=2100)) for _ in range(30)]  # ports vary: an engine gets none once in 60,000
    for head in heads:
        for tail in "xy":
            assert (await cluster.complete(prompt=head + tail))[0] == 200
    homes = {
        head: {n for n, engine in enumerate(cluster.prefills) for leg in engine.legs if leg.json["prompt"][:-1] == head}
        for head in heads
    }
    assert all(len(home) == 1 for home in homes.values())
    assert set.union(*homes.values()) == {0, 1, 2}
    assert [len(engine.legs) for engine in cluster.decodes] == [30, 30]  # round robin


async def test_session_goes_by_its_header(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 3, decode_scheduling="session", session_header="X-User")
    homes: dict[str, set[str]] = {}
    for turn in range(120):
        user = f"user-{turn % 40}"
        async with cluster.client.post("/v1/completions", json={}, headers={"X-User": user}) as response:
            homes.setdefault(user, set()).add((await response.json())["by"])
    assert all(len(home) == 1 for home in homes.values())
    assert len(set.union(*homes.values())) == 3
