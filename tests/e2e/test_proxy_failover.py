"""Engines that die, come back and are replaced under load, as real processes: no request fails, and none waits long.

`pytest tests/e2e/test_proxy_failover.py -s` shows the figures. Bounds here are for busy machines.
"""

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.xpyd import Done, XpYd, load, one, percentile

PREFILLS, DECODES = ["p0", "p1"], ["d0", "d1"]
EXTRA_MS = 60.0  # what a request that was hit may take longer, at p99
NOISE_MS = 100.0  # and more, on a machine with other work

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def xpyd(tmp_path: Path) -> Iterator[XpYd]:
    with XpYd(tmp_path) as cluster:
        for name in PREFILLS + DECODES:
            cluster.start_engine(name)
        yield cluster


def show(title: str, done: list[Done], hit: set[str]) -> tuple[float, float]:
    """p99 in ms of those hit, and of the others."""
    struck = [each.ms for each in done if each.id in hit]
    others = [each.ms for each in done if each.id not in hit]
    p99s = percentile(struck, 0.99) if struck else 0.0, percentile(others, 0.99)
    failed = [each for each in done if each.error]
    print(
        f"\n{title}: {len(failed)} failed of {len(done)}; {len(struck)} hit, p99 {p99s[0]:.0f} ms; "
        f"others p50 {percentile(others, 0.5):.0f}, p99 {p99s[1]:.0f} ms"
    )
    assert not failed, failed[:3]
    return p99s


@pytest.mark.parametrize("victim", ["p0", "d0"])
async def test_a_killed_engine_fails_no_request(xpyd: XpYd, victim: str) -> None:
    url = xpyd.start_proxy(PREFILLS, DECODES)
    kill = {80: xpyd.engines[victim].kill}
    # A decode engine that dies within a stream takes that stream with it; here it dies before its first bytes.
    done = await load(url, 200, 16, at=kill, stream=lambda n: victim == "p0" and n % 2 == 0)
    hit = xpyd.hit()
    struck, others = show(f"{victim} killed", done, hit)
    assert hit, "nothing was under way on the engine that was killed"
    assert struck <= others + EXTRA_MS + NOISE_MS


@pytest.mark.parametrize("victim", ["p0", "d0"])
async def test_a_frozen_engine_fails_no_request(xpyd: XpYd, victim: str) -> None:
    """SIGSTOP: it takes connections and answers nothing; the health checks find it out."""
    url = xpyd.start_proxy(PREFILLS, DECODES)
    stop = {80: xpyd.engines[victim].pause}
    done = await load(url, 200, 16, at=stop, stream=lambda n: victim == "p0" and n % 2 == 0)
    struck, _ = show(f"{victim} frozen", done, xpyd.hit())
    assert struck < 15_000  # long before --first-token-timeout
    xpyd.engines[victim].resume()


async def test_without_any_prefill_decode_serves_alone(xpyd: XpYd) -> None:
    url = xpyd.start_proxy(PREFILLS, DECODES)

    def kill_both() -> None:
        for name in PREFILLS:
            xpyd.engines[name].kill()

    show("both prefills killed", await load(url, 200, 16, at={80: kill_both}), xpyd.hit())
    show("still without", await load(url, 50, 16), xpyd.hit())


async def test_the_only_decode_dead_is_a_503_at_once_and_back_it_is_readmitted(xpyd: XpYd) -> None:
    url = xpyd.start_proxy(["p0", "p1"], ["d0"])
    async with aiohttp.ClientSession(url) as client:
        assert not (await one(client, 0, stream=False, tokens=4)).error
        xpyd.engines["d0"].kill()
        for stream in (False, True):
            started = time.monotonic()
            async with client.post("/v1/completions", json={"prompt": "x", "stream": stream}) as response:
                assert (response.status, response.content_type) == (503, "application/json")
                assert (await response.json())["error"]["type"] == "server_error"
            took_ms = 1000 * (time.monotonic() - started)
            print(f"\nno decode engine: 503 after {took_ms:.0f} ms")
            assert took_ms < 1_000
        async with client.get("/ready") as response:
            assert response.status == 503
        xpyd.start_engine("d0")
        back = time.monotonic()
        while (await one(client, 1, stream=True, tokens=4)).error:
            assert time.monotonic() - back < 5, "the engine is back, and is not used"
            await asyncio.sleep(0.02)
        print(f"readmitted after {time.monotonic() - back:.2f} s")
        assert time.monotonic() - back < 2 + 1
        async with client.get("/ready") as response:
            assert response.status == 200


async def test_all_engines_are_replaced_under_load(xpyd: XpYd) -> None:
    """Each in turn: a new one is added, the old one drained, removed when nothing runs on it, and ended."""
    key = {"X-API-Key": "secret"}
    url = xpyd.start_proxy(PREFILLS, DECODES, ADMIN_API_KEY="secret")
    async with aiohttp.ClientSession(url, headers=key) as client:

        async def tell(what: str, name: str) -> None:
            kind = "prefill" if name.startswith("p") else "decode"
            body = {"type": kind, "instance": xpyd.addresses[name]}
            async with client.post(f"/instances/{what}", json=body) as response:
                assert response.status == 200, await response.text()

        async def legs(name: str) -> int:
            async with client.get("/instances") as response:
                listed = (await response.json())["instances"]
            return next(each["legs"] for each in listed if each["instance"] == xpyd.addresses[name])

        async def replace() -> None:
            for name in PREFILLS + DECODES:
                await asyncio.to_thread(xpyd.start_engine, f"{name}-new")
                await tell("add", f"{name}-new")
                await tell("drain", name)
                async with asyncio.timeout(10):
                    while await legs(name):  # noqa: ASYNC110 - another process's
                        await asyncio.sleep(0.05)
                await tell("remove", name)
                xpyd.engines[name].kill()

        replacing = asyncio.create_task(replace())
        done: list[Done] = []
        while not replacing.done():
            done += await load(url, 200, 16)
        await replacing
        done += await load(url, 50, 16)
    show("all four replaced", done, xpyd.hit())
    assert not xpyd.hit()


async def test_sigterm_drains(xpyd: XpYd) -> None:
    url = xpyd.start_proxy(PREFILLS, DECODES)
    proxy = xpyd.proxy
    assert proxy is not None
    loading = asyncio.create_task(load(url, 16, 16, tokens=200))
    await asyncio.sleep(0.3)
    proxy._popen.send_signal(signal.SIGTERM)
    show("SIGTERM", await loading, xpyd.hit())
    assert await asyncio.to_thread(proxy.wait, 10) == 0
