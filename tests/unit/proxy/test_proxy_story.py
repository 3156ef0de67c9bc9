"""What is reported of each request: its id, its line in the log."""

import asyncio
import logging
from typing import Any

import pytest

KEYS = {
    "request_id", "method", "path", "status", "outcome", "prefill", "decode", "retries", "prompt_tokens", "ms",
    "prefill_ms", "first_byte_ms", "bytes",
}  # fmt: skip


class Told:
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    async def lines(self, count: int = 1) -> list[dict[str, Any]]:
        async with asyncio.timeout(5):
            while True:
                lines = [record.fields for record in self._caplog.records if record.getMessage() == "request"]
                if len(lines) >= count:
                    assert len(lines) == count
                    assert all(line.keys() == KEYS for line in lines)
                    return lines
                await asyncio.sleep(0.01)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    caplog.set_level(logging.INFO)
    return Told(caplog)


async def test_a_request_is_one_line(start_cluster: Any, told: Told, caplog: pytest.LogCaptureFixture) -> None:
    cluster = await start_cluster(log_format="json", openai_api_key="secret-key")
    headers = {"X-Request-Id": "abc", "Authorization": "Bearer secret-too"}
    body = {"prompt": "secret words", "stream": True}
    async with cluster.client.post("/v1/completions", json=body, headers=headers) as response:
        content = await response.read()
    (line,) = await told.lines()
    times = {name: line.pop(name) for name in ("ms", "prefill_ms", "first_byte_ms")}
    assert line == {
        "request_id": "abc",
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "outcome": "ok",
        "prefill": cluster.prefills[0].address,
        "decode": cluster.decodes[0].address,
        "retries": 0,
        "prompt_tokens": 3,
        "bytes": len(content),
    }
    assert 0 < times["prefill_ms"] < times["first_byte_ms"] <= times["ms"] < 5_000
    assert not any("secret" in str(record.__dict__) for record in caplog.records)


async def test_failures_are_in_the_line(start_cluster: Any, told: Told, closed_port: str) -> None:
    cluster = await start_cluster(log_format="json", prefill=(closed_port,))
    cluster.prefills[0].act = cluster.prefills[0].answer_500
    cluster.decodes[0].act = cluster.decodes[0].answer_500
    assert (await cluster.complete())[0] == 500
    async with cluster.client.get("/nothing") as response:
        assert response.status == 404
    async with cluster.client.get("/health"), cluster.client.get("/metrics"):
        pass
    failed, unknown = await told.lines(2)
    assert (failed["status"], failed["outcome"], failed["prefill"]) == (500, "engine_error", None)
    assert failed["retries"] >= 2
    assert (unknown["status"], unknown["path"], unknown["decode"], unknown["first_byte_ms"]) == (
        404,
        "/nothing",
        None,
        None,
    )


async def test_a_client_that_leaves_is_reported(start_cluster: Any, told: Told) -> None:
    cluster = await start_cluster(log_format="json")
    cluster.decodes[0].act = cluster.decodes[0].hang
    cluster.decodes[0].called.clear()
    asking = asyncio.create_task(cluster.complete())
    await cluster.decodes[0].called.wait()
    asking.cancel()
    (line,) = await told.lines()
    assert (line["status"], line["outcome"], line["retries"]) == (499, "cancelled", 0)
    assert line["decode"] == cluster.decodes[0].address


async def test_text_logs_report_only_failures(cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert (await cluster.complete())[0] == 200
    assert not [
        record
        for record in caplog.records
        if record.name.startswith(("services.proxy.app", "services.proxy.telemetry"))
    ]


@pytest.mark.parametrize("id", ["abc", "cmpl-1:2/3", "x" * 128])
async def test_a_clients_request_id_is_kept_on_both_legs(cluster: Any, id: str) -> None:
    async with cluster.client.post("/v1/completions", json={}, headers={"X-Request-Id": id}) as response:
        assert response.headers["X-Request-Id"] == id
    for engine in (cluster.prefills[0], cluster.decodes[0]):
        assert engine.legs[-1].headers.getall("X-Request-Id") == [id]


@pytest.mark.parametrize("id", ["", "x" * 129, "a b", "a\tb", "ü", "日本"])
async def test_a_hostile_request_id_is_replaced(cluster: Any, id: str) -> None:
    async with cluster.client.post("/v1/completions", json={}, headers={"X-Request-Id": id}) as response:
        made = response.headers["X-Request-Id"]
    assert made.isalnum()
    assert len(made) == 32
    for engine in (cluster.prefills[0], cluster.decodes[0]):
        assert engine.legs[-1].headers.getall("X-Request-Id") == [made]
