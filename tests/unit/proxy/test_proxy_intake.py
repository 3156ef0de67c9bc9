"""Which requests the proxy itself refuses, and what becomes of those that wait for their turn."""

import asyncio
import io
from typing import Any

import pytest

from services.proxy import intake

BODY = b'{ "model":"tiny","prompt" :"hello", "max_tokens":  7, "temperature":0, "x":"\xc3\xa9" }'
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"kv_transfer_params": {"remote_host": "10.0.0.1"}}',
        b'{"kv\\u005ftransfer_params": {"remote_host": "10.0.0.1"}}',
        '{"kv_transfer_params": {"remote_host": "10.0.0.1"}}'.encode("utf-16"),
        '{"kv_transfer_params": {"remote_host": "10.0.0.1"}}'.encode("utf-32-be"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses"])
async def test_a_client_may_not_say_where_to_fetch_kv_from(cluster: Any, path: str, body: bytes) -> None:
    async with cluster.client.post(path, data=body, headers=JSON) as response:
        assert response.status == 400
    assert cluster.legs == []


@pytest.mark.parametrize(
    ("data", "content_type", "status", "reason"),
    [
        (b"{", "application/json", 400, "not valid JSON"),
        (b"null", "application/json", 400, "must be a JSON object, not null"),
        (b'{"a":' + b"[" * 100_000, "application/json", 400, "not valid JSON"),
        (b"{}", "text/plain", 415, "Only 'application/json' is allowed"),
        (b" " * (intake.BODY_BYTES_MAX + 1), "application/json", 413, "over 67108864 bytes"),
    ],
)
async def test_a_request_that_cannot_be_served_is_refused_at_once(
    cluster: Any, data: bytes, content_type: str, status: int, reason: str
) -> None:
    headers = {"Content-Type": content_type}
    async with cluster.client.post("/v1/completions", data=io.BytesIO(data), headers=headers) as response:
        assert response.status == status
        error = (await response.json())["error"]
        assert response.headers["X-Request-Id"]
    assert reason in error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, status)
    assert cluster.legs == []
    assert cluster.metric("requests_total", path="/v1/completions", code=str(status), outcome="refused") == 1


async def test_a_body_of_unknown_length_is_bounded_too(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b" " * 2**20

    async with cluster.client.post("/v1/completions", data=endless(), headers=JSON) as response:
        assert response.status == 413
    assert cluster.legs == []


async def test_unknown_paths_and_methods_get_an_error_in_openais_form(cluster: Any) -> None:
    async with cluster.client.get("/nowhere") as response:
        assert response.status == 404
        assert "GET /nowhere" in (await response.json())["error"]["message"]
    async with cluster.client.delete("/status") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"
    assert cluster.metric("requests_total", path="other", code="404", outcome="refused") == 1


async def test_too_many_requests_get_a_429_and_waiting_ones_their_turn(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 1, max_concurrency=1, max_queue=1)
    engine = cluster.decodes[0]
    engine.next_event = asyncio.Semaphore(0)
    requests = [asyncio.create_task(cluster.client.post("/v1/completions", json={"stream": True})) for _ in range(2)]
    async with asyncio.timeout(5):
        while (cluster.metric("in_flight"), cluster.metric("queue")) != (2, 1):  # noqa: ASYNC110 - the proxy's state
            await asyncio.sleep(0.01)
    async with cluster.client.post("/v1/completions", json={}) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "1")
        assert "retry later" in (await response.json())["error"]["message"]
    async with cluster.client.get("/v1/models") as response:
        assert response.status == 429
    async with cluster.client.get("/health") as response:
        assert response.status == 200
    assert len(engine.legs) == 1
    for _ in range(8):
        engine.next_event.release()
    for request in requests:
        async with await request as response:
            assert (await response.read()).endswith(b"data: [DONE]\n\n")


async def test_a_request_that_waits_too_long_for_its_turn_gets_a_429(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 1, max_concurrency=1, queue_timeout=0.2)
    cluster.decodes[0].act = cluster.decodes[0].hang
    first = asyncio.create_task(cluster.complete())
    await cluster.decodes[0].called.wait()
    status, answer = await cluster.complete()
    assert status == 429
    assert "waited 0.2 s" in answer["error"]["message"]
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_a_client_that_leaves_the_queue_leaves_no_gap_in_it(start_cluster: Any) -> None:
    cluster = await start_cluster(0, 1, max_concurrency=1)
    cluster.decodes[0].act = cluster.decodes[0].hang
    requests = [asyncio.create_task(cluster.complete()) for _ in range(3)]
    await cluster.decodes[0].called.wait()
    for request in requests:
        request.cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    cluster.decodes[0].act = cluster.decodes[0].answer
    assert (await asyncio.wait_for(cluster.complete(), 5))[0] == 200
    assert cluster.metric("queue") == 0
