"""GET /status and POST /instances/add: the demo proxy's JSON, to the letter."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

KEY = {"X-API-Key": "sesame"}


@pytest.fixture
async def guarded(start_cluster: Any) -> Any:
    """One prefill, one decode in the table; decodes[1] serves, but was not added."""
    cluster = await start_cluster(1, 2, admin_api_key="sesame", model="tiny")
    cluster.proxy.table._engines["decode"].remove(cluster.decodes[1].address)
    return cluster


async def add(cluster: Any, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    async with cluster.client.post(
        "/instances/add", json=body, headers=KEY if headers is None else headers
    ) as response:
        return response.status, await response.json()


async def test_status(guarded: Any) -> None:
    async with guarded.client.get("/status") as response:
        assert response.status == 200
        assert await response.json() == {
            "prefill_node_count": 1,
            "decode_node_count": 1,
            "prefill_nodes": [guarded.prefills[0].address],
            "decode_nodes": [guarded.decodes[0].address],
        }


async def test_an_added_engine_gets_requests(guarded: Any) -> None:
    address = guarded.decodes[1].address
    assert await add(guarded, {"type": "decode", "instance": address}) == (
        200,
        {"message": f"Added {address} to decode_instances."},
    )
    assert {(await guarded.complete())[1]["by"] for _ in range(2)} == {"decode0", "decode1"}
    assert await add(guarded, {"type": "decode", "instance": address}) == (400, {"detail": "Instance already exists."})
    assert (await add(guarded, {"type": "prefill", "instance": address}))[0] == 200
    assert guarded.metric("instances", role="prefill") == 2


async def test_added_twice_at_once_it_is_there_once(guarded: Any) -> None:
    body = {"type": "decode", "instance": guarded.decodes[1].address}
    answers = await asyncio.gather(*(add(guarded, body) for _ in range(5)))
    assert sorted(status for status, _ in answers) == [200, 400, 400, 400, 400]
    assert guarded.metric("instances", role="decode") == 2


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "Invalid instance type."),
        ([], "Invalid instance type."),
        ({"type": "both", "instance": "127.0.0.1:1"}, "Invalid instance type."),
        ({"type": ["prefill"], "instance": "127.0.0.1:1"}, "Invalid instance type."),
        ({"type": "prefill"}, "Invalid instance format."),
        ({"type": "prefill", "instance": 7}, "Invalid instance format."),
        ({"type": "prefill", "instance": "localhost"}, "Invalid instance format."),
        ({"type": "prefill", "instance": "localhost:http"}, "Invalid instance address."),
        ({"type": "prefill", "instance": "localhost:-1"}, "Invalid instance address."),
        ({"type": "prefill", "instance": "example.com:80"}, "Invalid instance address."),
        ({"type": "prefill", "instance": "user@127.0.0.1:80"}, "Invalid instance address."),
        ({"type": "prefill", "instance": "::1:80"}, "Invalid instance address."),
        ({"type": "prefill", "instance": "127.0.0.1:0"}, "Invalid port number."),
        ({"type": "prefill", "instance": "127.0.0.1:65536"}, "Invalid port number."),
        ({"type": "prefill", "instance": "127.0.0.1:" + "9" * 5000}, "Invalid port number."),
    ],
)
async def test_what_is_no_instance_is_refused(guarded: Any, body: Any, detail: str) -> None:
    assert await add(guarded, body) == (400, {"detail": detail})


async def test_a_body_that_is_no_json_is_refused(guarded: Any) -> None:
    async with guarded.client.post("/instances/add", data=b"{", headers=KEY) as response:
        assert (response.status, await response.json()) == (400, {"detail": "Invalid JSON."})


async def test_the_key_is_asked_for(guarded: Any, start_cluster: Any) -> None:
    body = {"type": "decode", "instance": guarded.decodes[1].address}
    assert await add(guarded, body, {"X-API-Key": "Sesame"}) == (403, {"detail": "Forbidden: Invalid API Key."})
    assert await add(guarded, body, {"X-API-Key": "ключ"}) == (403, {"detail": "Forbidden: Invalid API Key."})
    status, answer = await add(guarded, body, {})
    assert (status, answer["detail"][0]["loc"]) == (422, ["header", "x-api-key"])
    off = await start_cluster()
    assert await add(off, body) == (500, {"detail": "Server configuration error."})
    assert guarded.decodes[1].legs == []  # who has no key makes the proxy send nothing


async def test_an_engine_that_is_not_there_is_refused(guarded: Any, closed_port: str) -> None:
    body = {"type": "decode", "instance": closed_port}
    assert await add(guarded, body) == (400, {"detail": "Instance validation failed."})


async def test_an_engine_of_another_model_is_refused(guarded: Any) -> None:
    guarded.decodes[1].models = ["other"]
    body = {"type": "decode", "instance": guarded.decodes[1].address}
    assert await add(guarded, body) == (400, {"detail": "Instance validation failed."})
    guarded.decodes[1].models = ["other", "tiny"]  # a LoRA adapter stands in the same list
    assert (await add(guarded, body))[0] == 200


async def test_without_a_model_any_engine_is_taken(start_cluster: Any) -> None:
    cluster = await start_cluster(admin_api_key="sesame")
    cluster.decodes[0].models = ["other"]
    body = {"type": "prefill", "instance": cluster.decodes[0].address}
    assert (await add(cluster, body))[0] == 200
    cluster.prefills[0].models = []
    body = {"type": "decode", "instance": cluster.prefills[0].address}
    assert await add(cluster, body) == (400, {"detail": "Instance validation failed."})


@pytest.mark.parametrize(
    "how", ["answer_500", "answer_nothing", "redirect", "reset", "garbage", "huge", "trickle", "odd"]
)
async def test_what_does_not_answer_as_an_engine_is_refused(
    guarded: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.upstream._VALIDATION_S", 0.5)

    async def huge(_: web.Request) -> web.StreamResponse:
        return web.json_response({"data": [{"id": "tiny"}], "padding": "x" * 2**21})

    async def odd(_: web.Request) -> web.StreamResponse:
        return web.json_response({"data": ["tiny"]})

    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)

    engine = guarded.decodes[1]
    engine.act = {"huge": huge, "odd": odd, "trickle": trickle}.get(how) or getattr(engine, how)
    body = {"type": "decode", "instance": engine.address}
    assert await asyncio.wait_for(add(guarded, body), 5) == (400, {"detail": "Instance validation failed."})
    assert guarded.metric("instances", role="decode") == 1
