"""Follow-ups of a response go to the engine that made it: no other can continue it or return it."""

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from services.proxy import responses
from services.proxy.core import homes
from services.proxy.core.engine import Address, Role
from services.proxy.core.homes import Homes, response_followed, response_made
from services.proxy.core.requests import fields_of


def makes_responses(engine: Any, *, stored: dict[str, Any]) -> None:
    """As vLLM does: each engine knows its own, and says that others do not exist."""

    async def act(request: web.Request) -> web.StreamResponse:
        parts = request.path.split("/")
        if request.method != "POST" or parts[-1] == "cancel":
            known = stored.get(parts[3])
            return web.json_response(known or {"error": {"message": "not found"}}, status=200 if known else 404)
        asked = await request.json()
        if (before := asked.get("previous_response_id")) is not None and before not in stored:
            return web.json_response({"error": {"message": "not found"}}, status=404)
        id = f"resp_{engine.name}_{len(stored)}"
        stored[id] = made = {"id": id, "object": "response", "by": engine.name}
        if not asked.get("stream"):
            return web.json_response(made)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        event = json.dumps({"type": "response.created", "sequence_number": 0, "response": made})
        await response.write(f"event: response.created\ndata: {event}\n\n".encode())
        await response.write(b'event: response.completed\ndata: {"id": "other"}\n\n')
        return response

    engine.act = act


async def respond(cluster: Any, before: str | None = None, *, stream: bool = False) -> tuple[int, str]:
    """Status and id."""
    fields = {"model": "tiny", "input": "x", "stream": stream} | ({"previous_response_id": before} if before else {})
    async with cluster.client.post("/v1/responses", json=fields) as response:
        content = await response.read()
    return response.status, response_made(content) or content.decode()


@pytest.mark.parametrize("stream", [False, True])
async def test_follow_ups_of_a_response_go_to_the_engine_that_made_it(start_cluster: Any, stream: bool) -> None:
    cluster = await start_cluster(0, 3)
    for engine in cluster.decodes:
        makes_responses(engine, stored={})
    for turn in range(3):
        status, id = await respond(cluster, stream=stream)
        assert (status, id.startswith(f"resp_decode{turn}")) == (200, True)
        for _ in range(4):
            by = id.split("_")[1]
            for method, tail in (("GET", ""), ("POST", "/cancel"), ("DELETE", ""), ("GET", "/input_items?limit=1")):
                async with cluster.client.request(method, f"/v1/responses/{id}{tail}") as response:
                    assert (response.status, (await response.json())["by"]) == (200, by)
            status, id = await respond(cluster, id, stream=stream)
            assert (status, id.split("_")[1]) == (200, by)


async def test_a_forgotten_response_is_looked_for(start_cluster: Any) -> None:
    """For example after a restart of the proxy."""
    cluster = await start_cluster(0, 3)
    stored = {"resp_old": {"id": "resp_old", "by": "decode1"}}
    for engine in cluster.decodes:
        makes_responses(engine, stored=stored if engine.name == "decode1" else {})
    for _ in range(4):
        async with cluster.client.get("/v1/responses/resp_old") as response:
            assert (response.status, (await response.json())["by"]) == (200, "decode1")
        assert (await respond(cluster, "resp_old"))[1].startswith("resp_decode1")
    assert len(cluster.decodes[0].legs) == 1  # asked once
    assert (await respond(cluster, "resp_never"))[0] == 404
    async with cluster.client.get("/v1/responses/a%2Fb") as response:
        assert response.status == 404


async def test_one_silent_engine_does_not_delay_the_search_for_a_response(
    start_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "_ASK_S", 0.1)
    cluster = await start_cluster(0, 2)
    cluster.decodes[0].act = cluster.decodes[0].hang
    makes_responses(cluster.decodes[1], stored={"resp_old": {"id": "resp_old", "by": "decode1"}})
    async with asyncio.timeout(5), cluster.client.get("/v1/responses/resp_old") as response:
        assert (await response.json())["by"] == "decode1"


async def test_a_response_whose_engine_is_gone_is_gone(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 2)
    for engine in cluster.decodes:
        makes_responses(engine, stored={})
    _, id = await respond(cluster)
    cluster.proxy.fleet.drain(Role.DECODE, Address(cluster.decodes[0].address))
    assert id.startswith("resp_decode0")
    async with cluster.client.get(f"/v1/responses/{id}") as response:
        assert response.status == 404
        assert "the engine that made it is gone" in (await response.json())["error"]["message"]
    assert (await respond(cluster, id))[0] == 404


async def test_a_failed_follow_up_goes_to_no_other_engine(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 2)
    for engine in cluster.decodes:
        makes_responses(engine, stored={})
    _, id = await respond(cluster)
    cluster.decodes[0].act = cluster.decodes[0].answer_500
    assert (await respond(cluster, id))[0] == 500
    assert cluster.decodes[1].legs == []


def test_the_memory_of_responses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "HOMES_MAX", 3)
    known = Homes()
    for n in range(4):
        known.note(f"r{n}", Address("e:1"))
    known.note("r1", Address("e:2"))
    known.note("r4", Address("e:1"))
    assert [known.get(f"r{n}") for n in range(5)] == [None, "e:2", None, "e:1", "e:1"]


def test_which_response_a_request_follows() -> None:
    fields = fields_of(b'{"previous_response_id": "resp_1"}')
    assert response_followed(["v1", "responses"], fields) == "resp_1"
    assert response_followed(["v1", "responses", "resp_2", "cancel"], fields) == "resp_2"
    assert response_followed(["v1", "chat", "completions"], fields) is None
    odd = (b"null", b"7", b'""', b'"\\ud800"', b'"\\u0000"', b'"%b"' % (b"x" * 257))
    for body in (b"{}", b"no JSON", *(b'{"previous_response_id": %b}' % each for each in odd)):
        assert response_followed(["v1", "responses"], fields_of(body)) is None
    assert response_made(b'{"id": "resp_1", "output": [{"id": "msg_1"}]}') == "resp_1"
    assert response_made(b'{"error": "x"}' + b" " * 5000 + b'"id": "y"') is None
