"""What engines receive and what clients get when all is well."""

import asyncio
import gzip
import io
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from services.proxy.core import legs
from services.proxy.core.engine import Role

BODY = b'{ "model":"tiny","prompt" :"hello", "max_tokens":  7, "temperature":0, "x":"\xc3\xa9" }'
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_prefill_first_then_the_original_bytes(cluster: Any, path: str) -> None:
    headers = JSON | {"X-Custom": "kept", "Authorization": "Bearer mine", "Connection": "X-Hop", "X-Hop": "dropped"}
    url = URL(f"{cluster.url}{path}?a=%2Fb", encoded=True)
    async with cluster.client.post(url, data=BODY, headers=headers) as response:
        assert response.status == 200
        assert response.headers["X-Engine"] == "decode0"
        assert response.headers["Content-Type"] == "application/json; charset=utf-8"
        answer = await response.read()
    assert json.loads(answer) == {"by": "decode0", "choices": [{"text": "é"}]}
    (prefill,), (decode,) = cluster.prefills[0].legs, cluster.decodes[0].legs
    expected = {"model": "tiny", "prompt": "hello", "max_tokens": 1, "temperature": 0, "x": "é", "stream": False}
    expected["ignore_eos"] = True
    asked = prefill.json
    assert asked.pop("kv_transfer_params")["do_remote_decode"] is True  # or it would not tell its handover
    assert asked == expected | ({"max_completion_tokens": 1} if "chat" in path else {})
    assert decode.body == BODY
    for leg, engine in ((prefill, cluster.prefills[0]), (decode, cluster.decodes[0])):
        assert (leg.method, leg.path) == ("POST", f"{path}?a=%2Fb")
        assert leg.headers["Host"] == engine.address
        assert leg.headers["X-Custom"] == "kept"
        assert leg.headers["Authorization"] == "Bearer mine"
        assert leg.headers["Content-Type"] == "application/json"
        assert "X-Hop" not in leg.headers
    assert cluster.metric("requests_total", path=path, code="200", outcome="ok") == 1


async def test_the_prefill_leg_ends_before_the_decode_leg_begins(cluster: Any) -> None:
    release = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return await cluster.prefills[0].answer(request)

    cluster.prefills[0].act = wait
    request = asyncio.create_task(cluster.complete())
    await asyncio.sleep(0.2)
    assert cluster.decodes[0].legs == []
    release.set()
    assert (await request)[0] == 200
    assert len(cluster.decodes[0].legs) == 1


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_stream_is_passed_on_event_by_event(cluster: Any, path: str, events: list[bytes]) -> None:
    engine = cluster.decodes[0]
    engine.next_event = asyncio.Semaphore(0)
    fields = {"stream": True, "stream_options": {"include_usage": True}}
    request = asyncio.create_task(cluster.client.post(path, json=fields))
    await asyncio.sleep(0.2)
    assert not request.done()  # the status is held until the first byte
    engine.next_event.release()
    async with await asyncio.wait_for(request, 5) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        for event in events:  # each arrives before the engine may write the next
            assert await asyncio.wait_for(response.content.readexactly(len(event)), 5) == event
            engine.next_event.release()
        assert await response.content.read() == b""
    prefill = cluster.prefills[0].legs[0].json
    assert prefill["stream"] is False
    assert "stream_options" not in prefill
    assert cluster.metric("time_to_first_token_seconds_count") == 1


async def test_round_robin_over_prefill_and_decode_engines(start_cluster: Any) -> None:
    cluster = await start_cluster(2, 3)
    answers = [(await cluster.complete())[1]["by"] for _ in range(6)]
    assert answers == ["decode0", "decode1", "decode2"] * 2
    assert [len(engine.legs) for engine in cluster.prefills] == [3, 3]


async def test_many_requests_at_once(start_cluster: Any) -> None:
    cluster = await start_cluster(2, 2)
    results = await asyncio.gather(*(cluster.complete(prompt=str(n)) for n in range(100)))
    assert {status for status, _ in results} == {200}
    for engines in (cluster.prefills, cluster.decodes):
        prompts = [leg.json["prompt"] for engine in engines for leg in engine.legs]
        assert sorted(prompts, key=int) == [str(n) for n in range(100)]
    assert cluster.metric("in_flight") == 0


async def test_without_prefill_engines_decode_answers(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 1)
    assert (await cluster.complete())[0] == 200
    assert cluster.metric("requests_total", path="/v1/completions", code="200", outcome="ok") == 1


async def test_a_request_id_is_kept_or_made_and_sent_on_both_legs(cluster: Any) -> None:
    for given in ({"X-Request-Id": "mine-7"}, {}):
        async with cluster.client.post("/v1/completions", json={}, headers=given) as response:
            answered = response.headers["X-Request-Id"]
        sent = [engine.legs[-1].headers.getall("X-Request-Id") for engine in (*cluster.prefills, *cluster.decodes)]
        assert sent == [[answered], [answered]]
        assert answered == given.get("X-Request-Id", answered)
    assert len(answered) == 32


async def test_the_engines_key_replaces_the_clients(start_cluster: Any) -> None:
    cluster = await start_cluster(openai_api_key="engines")
    async with cluster.client.post("/v1/completions", json={}, headers={"Authorization": "Bearer mine"}) as response:
        assert response.status == 200
    for engine in (*cluster.prefills, *cluster.decodes):
        assert engine.legs[0].headers.getall("Authorization") == ["Bearer engines"]


async def test_an_engines_answer_is_not_rewritten(cluster: Any) -> None:
    packed = gzip.compress(b'{"packed": true}')

    async def act(_: web.Request) -> web.StreamResponse:
        response = web.Response(status=418, reason="Short and stout", body=packed)
        response.headers.update({"Content-Type": "application/x-odd", "Content-Encoding": "gzip", "Keep-Alive": "5"})
        response.headers.add("Set-Cookie", "a=1")
        response.headers.add("Set-Cookie", "b=2")
        return response

    cluster.decodes[0].act = act
    cluster.proxy.fleet.add(Role.DECODE, cluster.decodes[0].address.replace("127.0.0.1", "localhost"))
    async with aiohttp.ClientSession(cluster.url, auto_decompress=False) as client:
        for _ in range(4):  # twice, and by name: for an address no cookies would be kept anyway
            async with client.post("/v1/completions", json={}, skip_auto_headers=["Accept-Encoding"]) as response:
                assert (response.status, response.reason) == (418, "Short and stout")
                assert response.headers["Content-Type"] == "application/x-odd"
                assert response.headers["Content-Encoding"] == "gzip"
                assert response.headers["Content-Length"] == str(len(packed))
                assert response.headers.getall("Set-Cookie") == ["a=1", "b=2"]
                assert "Keep-Alive" not in response.headers
                assert await response.read() == packed
    for leg in cluster.decodes[0].legs:
        assert "Cookie" not in leg.headers  # one client's cookies are not another's
        assert "Accept-Encoding" not in leg.headers
    assert cluster.metric("requests_total", path="/v1/completions", code="418", outcome="engine_error") == 4


async def test_answers_that_the_proxy_has_to_read_are_not_compressed(cluster: Any) -> None:
    """By an engine that compresses answers for clients that accept it, as those here do."""
    (prefill,), (decode,) = cluster.prefills, cluster.decodes

    def pack(engine: Any) -> Any:
        async def act(request: web.Request) -> web.StreamResponse:
            response = await engine.answer(request)
            response.enable_compression()
            return response

        return act

    prefill.params = {"remote_host": "10.1.2.3"}
    prefill.act, decode.act = pack(prefill), pack(decode)
    assert (await cluster.complete())[0] == 200
    assert decode.legs[0].json["kv_transfer_params"] == prefill.params
    async with cluster.client.get("/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["tiny"]
    async with cluster.client.get("/v1/files/1") as response:
        assert response.headers["Content-Encoding"] in ("gzip", "deflate")  # the client's business


async def test_other_paths_go_to_a_decode_engine_untouched(cluster: Any) -> None:
    async with cluster.client.get("/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["tiny"]
    async with cluster.client.post(
        "/v1/embeddings?q=1", data=b"\x00not json", headers={"Content-Type": "a/b"}
    ) as response:
        assert await response.json() == {"by": "decode0", "choices": [{"text": "é"}]}
    async with cluster.client.delete("/v1/files/a%2Fb%20c?x=%26") as response:
        assert (await response.json())["by"] == "decode0"
    async with cluster.client.head("/v1/anything") as response:
        assert (response.status, await response.read()) == (200, b"")
    assert cluster.prefills[0].legs == []
    seen = [(leg.method, leg.path, leg.body) for leg in cluster.decodes[0].legs]
    assert seen == [
        ("GET", "/v1/models", b""),
        ("POST", "/v1/embeddings?q=1", b"\x00not json"),
        ("DELETE", "/v1/files/a%2Fb%20c?x=%26", b""),
        ("HEAD", "/v1/anything", b""),
    ]
    assert cluster.decodes[0].legs[1].headers["Content-Type"] == "a/b"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../sleep",
        "/v1/%2e%2E/sleep",
        "/v1/x/..",
        "/v1/x/%2E./../sleep",
        "/v1/./sleep",
        "/v1/%2e/x",
        "/v1/..%5Csleep",
    ],
)
async def test_no_path_leads_out_of_v1(cluster: Any, path: str) -> None:
    """Or an engine behind a server that resolves such paths could be told to sleep."""
    async with cluster.client.post(URL(f"{cluster.url}{path}", encoded=True)) as response:
        assert response.status == 400
        assert "leads elsewhere" in (await response.json())["error"]["message"]
    assert cluster.legs == []


async def test_the_answer_to_a_head_has_a_length_and_no_body(cluster: Any) -> None:
    async def act(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"x" * 1000, headers={"X-Odd": "kept"})

    cluster.decodes[0].act = act
    for _ in range(2):  # on one connection: nothing of a body may follow
        async with cluster.client.head("/v1/files/1") as response:
            assert (response.status, response.headers["Content-Length"]) == (200, "1000")
            assert response.headers["X-Odd"] == "kept"
    async with cluster.client.get("/v1/files/1") as response:
        assert len(await response.read()) == 1000


async def test_operators_see_health_readiness_and_metrics(start_cluster: Any) -> None:
    cluster = await start_cluster(1, 0, admin_api_key="k")
    for path, status in (("/health", 200), ("/ready", 503)):
        async with cluster.client.get(path) as response:
            assert response.status == status
    assert (await cluster.complete())[0] == 503
    async with cluster.client.get("/metrics") as response:
        text = await response.text()
    assert 'larder_proxy_engines{role="prefill"} 1.0' in text
    assert 'larder_proxy_engines{role="decode"} 0.0' in text
    assert 'larder_proxy_requests_total{code="503",outcome="unserved",path="/v1/completions"} 1.0' in text
    assert 'larder_build_info{component="proxy",python="3.' in text
    assert "process_resident_memory_bytes" in text
    assert "larder_proxy_in_flight 0.0" in text  # the scrape itself is not counted
    assert cluster.prefills[0].legs == []  # nothing is prefilled without a decode engine


async def test_a_defect_in_the_proxy_is_a_500_without_details(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(legs, "prefill_request", fail)
    status, answer = await cluster.complete()
    assert (status, answer["error"]["type"]) == (500, "server_error")
    assert "secret" not in answer["error"]["message"]
    assert cluster.metric("requests_total", path="/v1/completions", code="500", outcome="internal") == 1


async def test_a_long_prompt_is_passed_on_complete(cluster: Any) -> None:
    prompt = "x" * 5_000_000
    body = io.BytesIO(json.dumps({"prompt": prompt}).encode())
    async with cluster.client.post("/v1/completions", data=body, headers=JSON) as response:
        assert response.status == 200
    for engine in (*cluster.prefills, *cluster.decodes):
        assert engine.legs[0].json["prompt"] == prompt
