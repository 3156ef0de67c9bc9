"""Engines are not interchangeable: a request goes where its model is; one that changes engines goes to all of them, and
only operators may send it."""

import asyncio
import json
import time
import tracemalloc
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from services.proxy.broadcast import PATHS
from services.proxy.core.engine import Address, Role
from services.proxy.core.homes import response_followed
from services.proxy.core.requests import fields_of, model_of

JSON = {"Content-Type": "application/json"}
KEY = {"X-API-Key": "sesame"}


@pytest.fixture(autouse=True)
def quick_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("UP_EVERY_S", 0.05), ("LOST_EVERY_S", 0.05), ("LIST_EVERY_S", 0.05)):
        monkeypatch.setattr(f"services.proxy.health.{name}", seconds)


async def lists(cluster: Any, role: Role, *models: set[str]) -> None:
    """Waits until the proxy knows."""
    async with asyncio.timeout(5):
        while [engine.models for engine in cluster.proxy.fleet.engines(role)] != list(models):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def serving(start_cluster: Any, prefills: list[list[str]], decodes: list[list[str]], **settings: Any) -> Any:
    cluster = await start_cluster(len(prefills), len(decodes), **settings)
    for engines, models in ((cluster.prefills, prefills), (cluster.decodes, decodes)):
        for engine, named in zip(engines, models, strict=True):
            engine.models = named
    await lists(cluster, Role.PREFILL, *map(set, prefills))
    await lists(cluster, Role.DECODE, *map(set, decodes))
    return cluster


def seen(engines: list[Any]) -> list[set[Any]]:
    return [{json.loads(leg.body)["model"] for leg in engine.legs} for engine in engines]


# -- models


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_request_goes_where_its_model_is(start_cluster: Any, path: str) -> None:
    cluster = await serving(start_cluster, [["a"], ["b"]], [["a"], ["b", "b-lora"], ["b"]])
    for _ in range(4):
        for model in ("a", "b", "b-lora"):
            async with cluster.client.post(path, json={"model": model, "prompt": "x"}) as response:
                assert response.status == 200
    assert seen(cluster.prefills) == [
        {"a"},
        {"b"},
    ]  # requests for an adapter that no prefill engine has are not prefilled
    assert seen(cluster.decodes) == [{"a"}, {"b", "b-lora"}, {"b"}]
    assert [len(engine.legs) for engine in cluster.prefills] == [4, 4]
    await cluster.metric_is(12, "requests_total", code="200", outcome="ok")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/v1/messages", "/tokenize"])
async def test_other_paths_go_where_their_model_is(start_cluster: Any, path: str) -> None:
    cluster = await serving(start_cluster, [], [["a"], ["b"]])
    for model in ("b", "a", "a", "b", "b"):
        async with cluster.client.post(path, json={"input": "x", "model": model}) as response:
            assert response.status == 200
    assert seen(cluster.decodes) == [{"a"}, {"b"}]


async def test_a_form_goes_where_its_model_is(start_cluster: Any) -> None:
    cluster = await serving(start_cluster, [], [["a"], ["whisper"]])
    for _ in range(3):
        form = aiohttp.FormData({"model": "whisper"})
        form.add_field("file", b"\x00RIFF", filename="a.wav")
        async with cluster.client.post("/v1/audio/transcriptions", data=form) as response:
            assert response.status == 200
    assert [len(engine.legs) for engine in cluster.decodes] == [0, 3]


def test_a_form_that_names_no_model_is_read_in_no_time() -> None:
    for line in (b"name=model\r\n", b'name="model"\r\nX: y\r\n', b'name="model"\r\n' + b"x" * 200 + b"\r\n"):
        started = time.monotonic()
        assert fields_of(line * 200_000) == {}  # looking at each line for each line would take hours
        assert time.monotonic() - started < 2


def test_a_model_that_is_not_a_name_is_not_read() -> None:
    """A list of lists takes thirty times the memory of its text."""
    body = b'{"model": [' + b"[]," * (1 << 20) + b'0], "previous_response_id": [' + b"[]," * (1 << 20) + b"0]}"
    tracemalloc.start()
    try:
        fields = fields_of(body)
        assert (model_of(fields), response_followed(["v1", "responses"], fields)) == ("", None)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(body)
    finally:
        tracemalloc.stop()
    assert model_of(fields_of(b'{"model": "caf\\u00e9"}')) == "café"


async def test_a_wrong_key_is_reported_as_the_engines_report_it(start_cluster: Any) -> None:
    """Not as a failure of theirs, after which clients would retry."""
    cluster = await start_cluster(0, 2)

    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": "Unauthorized"}, status=401)

    cluster.decodes[0].act = refuse
    for expected in (200, 401):
        async with cluster.client.get("/v1/models") as response:
            assert response.status == expected
            answer = await response.json()
        cluster.decodes[1].act = refuse
    assert answer == {"error": "Unauthorized"}
    await cluster.metric_is(1, "requests_total", path="/v1/models", code="401", outcome="engine_error")


async def test_a_model_that_is_loaded_or_unloaded_is_noticed(start_cluster: Any) -> None:
    cluster = await serving(start_cluster, [], [["a"], ["a"]])
    cluster.decodes[1].models = ["a", "lora"]
    await lists(cluster, Role.DECODE, {"a"}, {"a", "lora"})
    assert [(await cluster.complete(model="lora"))[1]["by"] for _ in range(3)] == ["decode1"] * 3
    cluster.decodes[0].models, cluster.decodes[1].models = ["a", "lora"], ["a"]
    await lists(cluster, Role.DECODE, {"a", "lora"}, {"a"})
    assert [(await cluster.complete(model="lora"))[1]["by"] for _ in range(3)] == ["decode0"] * 3


async def test_a_model_that_no_engine_lists_is_refused_by_an_engine(start_cluster: Any, closed_port: str) -> None:
    cluster = await serving(start_cluster, [["a"]], [["a"]])
    cluster.proxy.fleet.add(Role.DECODE, Address(closed_port))
    cluster.proxy.health.follow()

    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "The model `x` does not exist."}}, status=404)

    cluster.decodes[0].act = refuse
    for _ in range(2):
        status, answer = await cluster.complete(model="x")
        assert (status, answer["error"]["message"]) == (404, "The model `x` does not exist.")
    assert cluster.prefills[0].legs == []


async def test_a_model_whose_engine_is_down_is_not_sent_to_another(start_cluster: Any) -> None:
    cluster = await serving(start_cluster, [], [["a"], ["b"]])
    cluster.decodes[1].healthy = False
    await cluster.metric_is(0, "engine_up", engine=cluster.decodes[1].address)
    assert (await cluster.complete(model="b"))[0] == 503
    assert (await cluster.complete(model="a"))[1]["by"] == "decode0"


@pytest.mark.parametrize("model", [None, "", 7, ["a"]])
async def test_without_a_name_any_engine_is_asked(start_cluster: Any, model: Any) -> None:
    cluster = await serving(start_cluster, [], [["a"], ["b"]])
    assert {(await cluster.complete(model=model))[1]["by"] for _ in range(2)} == {"decode0", "decode1"}


async def test_an_engine_that_does_not_list_its_models_may_have_any(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 2)
    cluster.decodes[0].models, cluster.decodes[1].models = [], ["b"]
    await lists(cluster, Role.DECODE, {"tiny"}, {"b"})  # what it listed last
    assert (await cluster.complete(model="tiny"))[1]["by"] == "decode0"


async def test_every_model_that_is_served_is_listed(start_cluster: Any) -> None:
    cluster = await serving(start_cluster, [], [["a"], ["b", "a"]])
    cluster.decodes[1].frozen = True  # for the probes: it is not among the best now
    async with cluster.client.get("/v1/models") as response:
        assert {model["id"] for model in (await response.json())["data"]} == {"a", "b"}


def test_which_model_a_request_names() -> None:
    assert model_of(fields_of(b' {"model": "a\\u0062"}')) == "ab"
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\nContent-Type: text/plain\r\n\r\nw-1\r\n--x--'
    assert model_of(fields_of(form)) == "w-1"
    for body in (b"", b"{", b"[1]", b'{"model": 1}', b'{"model": null}', b"\xff\x00", b"{" * 100_000):
        assert model_of(fields_of(body)) == ""


# -- what changes engines


@pytest.mark.parametrize("key", [{}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer sesame"}])
@pytest.mark.parametrize("admin_api_key", [None, "sesame"])
async def test_nobody_without_the_key_changes_engines(start_cluster: Any, key: Any, admin_api_key: str | None) -> None:
    cluster = await start_cluster(1, 2, admin_api_key=admin_api_key)
    spellings = [
        "/v1/%6Coad_lora_adapter",
        "/v1//load_lora_adapter",
        "/v1/load_lora_adapter/",
        "/v1/%2Fload_lora_adapter",
    ]
    for path in [*sorted(PATHS), *spellings]:
        async with cluster.client.post(URL(f"{cluster.url}{path}", encoded=True), json={}, headers=key) as response:
            assert response.status in (403, 404), path
            assert (await response.json())["error"]["type"] == "invalid_request_error"
    assert cluster.legs == []


async def test_changes_that_a_reload_cannot_undo_do_not_pass(start_cluster: Any) -> None:
    cluster = await start_cluster(1, 1, admin_api_key="sesame")
    for path in ("/collective_rpc", "/update_weights", "/scale_elastic_ep", "/abort_requests", "/v1/../sleep"):
        async with cluster.client.post(URL(f"{cluster.url}{path}", encoded=True), json={}, headers=KEY) as response:
            assert response.status in (400, 404)
    assert cluster.legs == []


async def test_a_change_reaches_every_engine(start_cluster: Any) -> None:
    cluster = await start_cluster(1, 2, admin_api_key="sesame", openai_api_key="engines")
    body = b'{"lora_name": "x", "lora_path": "/x"}'

    def loads(engine: Any) -> Any:
        async def act(_: web.Request) -> web.StreamResponse:
            engine.models = ["tiny", "x"]
            return web.Response(text="Success")

        return act

    for engine in (*cluster.prefills, *cluster.decodes):
        engine.act = loads(engine)
    async with cluster.client.post("/v1/load_lora_adapter?a=1", data=body, headers=KEY | JSON) as response:
        assert response.status == 200
        results = (await response.json())["results"]
    assert [(each["types"], each["status"], each["answer"]) for each in results] == [
        (["prefill"], 200, "Success"),
        (["decode"], 200, "Success"),
        (["decode"], 200, "Success"),
    ]
    for engine in (*cluster.prefills, *cluster.decodes):
        (leg,) = engine.legs
        assert (leg.method, leg.path, leg.body) == ("POST", "/v1/load_lora_adapter?a=1", body)
        assert leg.headers["Authorization"] == "Bearer engines"
        assert "X-API-Key" not in leg.headers
    await lists(cluster, Role.DECODE, {"tiny", "x"}, {"tiny", "x"})


async def test_a_change_that_some_engines_did_not_make_reports_which(start_cluster: Any, closed_port: str) -> None:
    cluster = await start_cluster(0, 3, decode=(closed_port,), admin_api_key="sesame")
    cluster.decodes[1].act = cluster.decodes[1].answer_400
    async with cluster.client.post("/reset_prefix_cache", headers=KEY) as response:
        assert response.status == 502
        results = {each["instance"]: each for each in (await response.json())["results"]}
    assert [results[engine.address]["status"] for engine in cluster.decodes] == [200, 400, 200]
    assert "bad temperature" in results[cluster.decodes[1].address]["answer"]
    assert results[closed_port]["status"] is None
    assert "no connection" in results[closed_port]["answer"]


async def test_a_change_that_all_refuse_gets_their_status(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 2, admin_api_key="sesame")
    for engine in cluster.decodes:
        engine.act = engine.answer_400
    async with cluster.client.post("/v1/unload_lora_adapter", json={}, headers=KEY) as response:
        assert (response.status, len((await response.json())["results"])) == (400, 2)
    async with cluster.client.get("/v1/load_lora_adapter", headers=KEY) as response:
        assert response.status == 405
