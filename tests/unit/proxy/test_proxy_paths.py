"""Which paths reach engines, which do not, and what becomes of a client that wants to switch protocols."""

import asyncio
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from services.proxy import broadcast
from services.proxy.core.paths import PASSED

POSTED = [path for path, method in PASSED.items() if method == "POST"]
READ = [path for path, method in PASSED.items() if method != "POST"]
OPERATORS = [
    *("/sleep", "/wake_up", "/pause", "/resume", "/reset_prefix_cache", "/collective_rpc", "/update_weights"),
    *("/abort_requests", "/inference/v1/abort_requests", "/scale_elastic_ep", "/start_profile", "/server_info"),
    *("/kv_event_sources", "/fault_tolerance/apply"),
]


@pytest.mark.parametrize("path", POSTED)
async def test_paths_that_vllm_serves_beside_v1_go_to_an_engine(cluster: Any, path: str) -> None:
    async with cluster.client.post(f"{path}?a=1", json={"input": "x"}) as response:
        assert (response.status, (await response.json())["by"]) == (200, "decode0")
    async with cluster.client.get(path) as response:
        assert response.status == 405
    (leg,) = cluster.decodes[0].legs
    assert (leg.method, leg.path, leg.json) == ("POST", f"{path}?a=1", {"input": "x"})
    assert cluster.prefills[0].legs == []
    await cluster.metric_is(1, "requests_total", path=path, code="200", outcome="ok")


@pytest.mark.parametrize("path", READ)
async def test_paths_that_vllm_lets_clients_read_go_to_an_engine(cluster: Any, path: str) -> None:
    async with cluster.client.get(path) as response:
        assert (response.status, await response.json()) == (200, {"path": path, "by": "decode0"})


@pytest.mark.parametrize("path", POSTED)
async def test_another_engine_is_asked_if_one_fails(start_cluster: Any, path: str) -> None:
    cluster = await start_cluster(0, 2)
    cluster.decodes[0].act = cluster.decodes[0].reset
    async with cluster.client.post(path, json={}) as response:
        assert (response.status, (await response.json())["by"]) == (200, "decode1")


@pytest.mark.parametrize("path", OPERATORS)
async def test_paths_that_change_an_engine_or_tell_of_one_alone_do_not(cluster: Any, path: str) -> None:
    for method in ("GET", "POST"):
        async with cluster.client.request(method, path) as response:
            assert response.status == (403 if path in broadcast.PATHS else 404)
    assert cluster.legs == []


def test_the_paths_are_vllms() -> None:
    """Except those of older versions, which its engines answer with 404."""
    vllm = find_spec("vllm")
    assert vllm is not None
    assert vllm.origin is not None
    sources = [path.read_text() for path in (Path(vllm.origin).parent / "entrypoints").rglob("*router*.py")]
    served = {path for source in sources for path in re.findall(r'"(/[a-z0-9_/]+)"', source)}
    assert set(PASSED) - served == {"/embed"}


@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/completions", "/nowhere"])
async def test_a_websocket_is_refused_with_a_reason(cluster: Any, path: str) -> None:
    headers = {"Connection": "keep-alive, Upgrade", "Upgrade": "WebSocket", "Sec-WebSocket-Version": "13"}
    for _ in range(2):
        async with cluster.client.get(path, headers=headers | {"Sec-WebSocket-Key": "a" * 22 + "=="}) as response:
            assert response.status == 501
            assert response.headers["Connection"] == "close"
            error = (await response.json())["error"]
    assert (error["code"], error["type"]) == (501, "server_error")
    assert "websockets are not passed on" in error["message"]
    assert cluster.legs == []


async def test_other_upgrades_are_ignored(cluster: Any) -> None:
    """curl --http2 asks for one with every request."""
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQ"}
    for given in (headers, {"Upgrade": "websocket"}):
        async with cluster.client.post("/v1/completions", json={"prompt": "a"}, headers=given) as response:
            assert (response.status, (await response.json())["by"]) == (200, "decode0")
    for leg in cluster.decodes[0].legs:
        assert {"Upgrade", "HTTP2-Settings"}.isdisjoint(leg.headers)


async def test_a_draining_proxy_waits_for_these_paths_too(cluster: Any) -> None:
    release = asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await release.wait()
        return await cluster.decodes[0].answer(request)

    cluster.decodes[0].act = wait
    request = asyncio.create_task(cluster.client.post("/rerank", json={}))
    await cluster.decodes[0].called.wait()
    stopping = asyncio.create_task(cluster.stop())
    await asyncio.sleep(0.2)
    assert not stopping.done()
    release.set()
    async with await request as response:
        assert response.status == 200
    await stopping
