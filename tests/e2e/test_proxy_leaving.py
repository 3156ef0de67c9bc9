"""Engines that get SIGTERM while they answer, as real processes: what they have begun is their clients' as it would be
without a proxy."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.xpyd import XpYd

pytestmark = pytest.mark.timeout(60)
ANSWER_S = 5  # more than two probes without an answer


@pytest.mark.parametrize("victim", ["p0", "d0"])
async def test_an_engine_finishes_what_it_runs_after_sigterm(tmp_path: Path, victim: str) -> None:
    with XpYd(tmp_path) as xpyd:
        for name in ("p0", "d0"):
            xpyd.start_engine(name, *(("--answer-s", str(ANSWER_S)) if name == victim else ()), server="uvicorn_engine")
        url = xpyd.start_proxy(["p0"], ["d0"], "--handover", "store")
        async with aiohttp.ClientSession(url) as client:

            async def complete() -> tuple[int, Any]:
                async with client.post("/v1/completions", json={"prompt": "x"}) as response:
                    return response.status, await response.json()

            running = asyncio.create_task(complete())
            await asyncio.sleep(1)
            xpyd.engines[victim]._popen.send_signal(signal.SIGTERM)
            assert await running == (200, {"choices": [{"text": "whole"}]})
            assert await asyncio.to_thread(xpyd.engines[victim].wait, 5) in (0, -signal.SIGTERM)
            status, _ = await complete()
        assert status == (503 if victim == "d0" else 200)  # nothing new goes there
        assert not xpyd.hit()
