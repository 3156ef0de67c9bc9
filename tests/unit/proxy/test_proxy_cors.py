"""Pages of other origins: what the proxy's own answers and engines' tell browsers, compared with vLLM's code."""

import asyncio
import json
from itertools import product
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict
from starlette.middleware.cors import CORSMiddleware

from services.proxy.cors import Cors

PAGE = "https://app.example"
ASKS = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}


async def vllms(method: str, asked: dict[str, str], own: dict[str, str], **options: Any) -> tuple[int, dict[str, str]]:
    """What Starlette's middleware, which vLLM uses, makes of an answer with these headers."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(name.lower().encode(), value.encode()) for name, value in own.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(message: Any) -> None:
        sent.append(message)

    names = {"origins": "allow_origins", "methods": "allow_methods", "headers": "allow_headers"}
    middleware = CORSMiddleware(app, **{names.get(key, "allow_credentials"): value for key, value in options.items()})
    given = [(name.lower().encode(), value.encode()) for name, value in asked.items()]
    await middleware({"type": "http", "method": method, "headers": given}, None, send)  # type: ignore[arg-type]
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.mark.parametrize("credentials", [False, True])
@pytest.mark.parametrize("origins", [["*"], [PAGE, "http://localhost:3000"], ["https://other.example"]])
async def test_every_answer_has_the_same_headers_as_vllms(origins: list[str], credentials: bool) -> None:
    lists: Any = product((["*"], ["GET"], ["GET", "POST"]), (["*"], [], ["X-Mine", "authorization"]))
    for methods, headers in lists:
        options: Any = {"origins": origins, "methods": methods, "headers": headers, "credentials": credentials}
        cors = Cors(**options)
        for more in (
            {},
            {"Access-Control-Request-Headers": "X-Mine, content-type"},
            {"Access-Control-Request-Headers": ""},
        ):
            asked = ASKS | more
            answer = cors.preflight("OPTIONS", CIMultiDict(asked))
            status, expected = await vllms("OPTIONS", asked, {}, **options)
            assert answer is not None
            got = {name.lower(): value for name, value in answer.headers.items()}
            expected = {name: value for name, value in expected.items() if not name.startswith("content-")}
            assert (answer.status, got) == (status, expected)
        for origin, own in product((None, PAGE), ({}, {"Vary": "Accept-Encoding"})):
            asked = {} if origin is None else {"Origin": origin}
            marked = CIMultiDict(own)
            cors.mark(origin, marked)
            _, expected = await vllms("GET", asked, own, **options)
            assert {name.lower(): value for name, value in marked.items()} == expected


def test_without_origins_engines_headers_pass() -> None:
    cors = Cors(origins=(), methods=("*",), headers=("*",), credentials=False)
    assert cors.preflight("OPTIONS", CIMultiDict(ASKS)) is None
    headers = CIMultiDict({"Access-Control-Allow-Origin": "*"})
    cors.mark(PAGE, headers)
    assert dict(headers) == {"Access-Control-Allow-Origin": "*"}


async def test_every_answer_to_a_page_is_marked_once(start_cluster: Any) -> None:
    cluster = await start_cluster(1, 1, allowed_origins='["*"]', max_concurrency=1, max_queue=0, admin_api_key="k")
    (engine,) = cluster.decodes

    async def marks_too(request: web.Request) -> web.StreamResponse:
        headers = {
            "Content-Type": "text/event-stream",
            "Access-Control-Allow-Origin": "https://engine",
            "Vary": "Origin",
        }
        response = web.StreamResponse(headers=headers | {"access-control-allow-credentials": "true"})
        await response.prepare(request)
        await response.write(b"data: {}\n\n")
        return response

    async def seen(method: str, path: str, **options: Any) -> int:
        async with cluster.client.request(method, path, headers={"Origin": PAGE}, **options) as response:
            assert response.headers.getall("Access-Control-Allow-Origin") == ["*"], path
            assert response.headers.getall("Vary") == ["Origin"]
            assert "Access-Control-Allow-Credentials" not in response.headers
            await response.read()
            return int(response.status)

    assert await seen("GET", "/v1/models") == 200
    assert await seen("GET", "/status") == 200
    assert await seen("GET", "/instances") == 422
    assert await seen("GET", "/nowhere") == 404
    assert await seen("DELETE", "/status") == 405
    engine.act = marks_too
    assert await seen("POST", "/v1/completions", json={"stream": True}) == 200
    assert await seen("POST", "/v1/embeddings", json={}) == 200
    assert await seen("POST", "/v1/completions", data="{}") == 415
    engine.act = engine.answer_500
    assert await seen("POST", "/v1/completions", json={}) == 500
    engine.act = engine.hang
    engine.called.clear()
    running = asyncio.create_task(cluster.complete())
    await engine.called.wait()
    assert await seen("POST", "/v1/completions", json={}) == 429
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await cluster.metric_is(0, "in_flight")
    engine.act = engine.reset
    assert await seen("POST", "/v1/files", json={}) == 502
    await engine.end()
    assert await seen("POST", "/v1/completions", json={}) == 503


async def test_a_preflight_is_answered_by_the_proxy(start_cluster: Any) -> None:
    cluster = await start_cluster(1, 1, allowed_origins=[json.dumps([PAGE])])
    for path in ("/v1/chat/completions", "/v1/models", "/tokenize", "/nowhere", "/status"):
        async with cluster.client.options(path, headers=ASKS) as response:
            assert (response.status, await response.text()) == (200, "OK")
            assert response.headers.getall("Access-Control-Allow-Origin") == [PAGE]
        async with cluster.client.options(path, headers=ASKS | {"Origin": "https://evil"}) as response:
            assert (response.status, await response.text()) == (400, "Disallowed CORS origin")
            assert "Access-Control-Allow-Origin" not in response.headers
    assert cluster.legs == []
    async with cluster.client.get("/v1/models", headers={"Origin": "https://evil"}) as response:
        assert response.status == 200
        assert "Access-Control-Allow-Origin" not in response.headers
    async with cluster.client.options("/v1/models", headers={"Origin": PAGE}) as response:  # no preflight
        assert response.headers["Access-Control-Allow-Origin"] == PAGE
