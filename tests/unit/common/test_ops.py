"""The operators' port, asked over real HTTP."""

import aiohttp
import pytest
from larder.addresses import join
from prometheus_client import CollectorRegistry, Counter

from services.common.ops import Ops


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_health_ready_and_metrics(host: str) -> None:
    registry = CollectorRegistry()
    Counter("larder_test_things_total", "Things", registry=registry).inc(3)
    ready = False
    ops = Ops(host, 0, registry, lambda: ready)
    port = await ops.start()
    try:
        async with aiohttp.ClientSession(f"http://{join(host, port)}") as http:
            assert (await http.get("/health")).status == 200
            assert (await http.get("/ready")).status == 503
            ready = True
            assert (await http.get("/ready")).status == 200
            reply = await http.get("/metrics")
            assert reply.content_type == "text/plain"
            text = await reply.text()
            assert "larder_test_things_total 3.0" in text
            assert "process_resident_memory_bytes" in text
            assert (await http.get("/nowhere")).status == 404
    finally:
        await ops.close()


async def test_what_is_to_be_said_beside_ready_is_said() -> None:
    ops = Ops("127.0.0.1", 0, CollectorRegistry(), lambda: True, lambda: "it rests")
    port = await ops.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            reply = await http.get("/ready")
            assert (reply.status, await reply.text()) == (200, "ready\nit rests\n")
    finally:
        await ops.close()


async def test_a_taken_port_is_named() -> None:
    first = Ops("127.0.0.1", 0, CollectorRegistry(), lambda: True)
    port = await first.start()
    try:
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port} for metrics: .*--metrics-port"):
            await Ops("127.0.0.1", port, CollectorRegistry(), lambda: True).start()
    finally:
        await first.close()
