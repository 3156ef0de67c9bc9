"""--discover with real processes: every worker follows what one of them finds, also when that one dies."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.test_proxy_admin import fresh_client, workers_of
from tests.e2e.xpyd import XpYd, load

WORKERS = 2

pytestmark = pytest.mark.timeout(120)


async def seen_by_all(url: str) -> set[tuple[str, ...]]:
    """The decode engines of every worker: each connection comes to one by chance."""
    seen = set()
    async with fresh_client(url) as client:
        for _ in range(20):
            async with client.get("/status") as response:
                seen.add(tuple(sorted((await response.json())["decode_nodes"])))
    return seen


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await what():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)


async def test_all_workers_follow_a_file_that_is_replaced_under_load_and_no_request_fails(tmp_path: Path) -> None:
    listed, new = tmp_path / "engines.yaml", tmp_path / "new.yaml"

    def publish(*decodes: str) -> set[tuple[str, ...]]:
        new.write_text("decode:\n" + "".join(f"- {xpyd.addresses[name]}\n" for name in decodes))
        new.replace(listed)
        return {tuple(sorted(xpyd.addresses[name] for name in decodes))}

    with XpYd(tmp_path) as xpyd:
        for name in ("d0", "d1", "d2"):
            xpyd.start_engine(name, wait=False)
        url = xpyd.start_proxy([], [], "--workers", str(WORKERS), "--discover", f"file://{listed}")
        assert await seen_by_all(url) == {()}
        expected = publish("d0", "d1")

        async def all_see_it() -> bool:
            return await seen_by_all(url) == expected

        await until(all_see_it)
        loading = asyncio.create_task(load(url, 200, 8))
        expected = publish("d1", "d2")
        await until(all_see_it)
        assert [done.error for done in await loading if done.error] == []

        for pid in workers_of(xpyd):  # whichever it is that looks for engines
            os.kill(pid, signal.SIGKILL)
        await until(lambda: _serve_again(xpyd, url))
        assert await seen_by_all(url) == expected
        expected = publish("d0")
        await until(all_see_it)


async def _serve_again(xpyd: XpYd, url: str) -> bool:
    try:
        async with fresh_client(url) as client:
            for _ in range(20):
                async with client.get("/metrics") as response:
                    if f"larder_proxy_workers {WORKERS}.0" not in await response.text():
                        return False
    except aiohttp.ClientError:
        return False
    return len(workers_of(xpyd)) == WORKERS
