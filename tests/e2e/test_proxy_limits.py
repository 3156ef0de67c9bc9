"""Clients that mean harm, against the proxy as a process: each is refused with a reason, others are served meanwhile,
and the process stays small. `pytest tests/e2e/test_proxy_limits.py -s` shows the figures."""

import asyncio
import io
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.xpyd import XpYd, load, percentile

SLOW = 500
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
JSON = {"Content-Type": "application/json"}
BODY_BYTES = 100_000_000
LISTS = b'{"prompt": "x", "a": [' + b"[]," * 5_000_000 + b"1]}"  # parsed, it would be 300 MB
GROWTH_MB = 200

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def xpyd(tmp_path: Path) -> Iterator[XpYd]:
    with XpYd(tmp_path) as cluster:
        for name in ("p0", "d0"):
            cluster.start_engine(name)
        cluster.start_proxy(["p0"], ["d0"])
        yield cluster


def memory_mb(xpyd: XpYd, what: str) -> float:
    """VmRSS (now) or VmHWM (at most)."""
    assert xpyd.proxy is not None
    status = Path(f"/proc/{xpyd.proxy.pid}/status").read_text()
    found = re.search(rf"{what}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


async def served(xpyd: XpYd, requests: int) -> None:
    done = await load(xpyd.url, requests, 8)
    failed = [each for each in done if each.error]
    assert not failed, failed[:3]
    print(f"{requests} others: none failed, p99 {percentile([each.ms for each in done], 0.99):.0f} ms")


async def test_500_heads_that_never_end(xpyd: XpYd) -> None:
    host, port = xpyd.url.removeprefix("http://").split(":")
    await served(xpyd, 50)
    before = memory_mb(xpyd, "VmRSS")
    began = time.monotonic()
    peers = await asyncio.gather(*(asyncio.open_connection(host, int(port)) for _ in range(SLOW)))

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, float]:
        """A line a second; returns the answer's status, and when it came."""
        writer.write(HEAD + b"X-Long: " + b"v" * 8000 + b"\r\n")
        answering = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
        while not (await asyncio.wait((answering,), timeout=1))[0]:
            writer.write(b"X-More: 1\r\n")
        head, after_s = answering.result(), time.monotonic() - began
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length is not None
        assert json.loads(await reader.readexactly(int(length[1])))["error"]["code"] == int(head.split()[1])
        writer.close()
        return int(head.split()[1]), after_s

    slow = asyncio.gather(*(one(*peer) for peer in peers))
    await asyncio.sleep(1)
    grown = memory_mb(xpyd, "VmRSS") - before
    await served(xpyd, 200)
    answers = await slow
    print(f"{SLOW} slow heads: {grown:.0f} MB more, refused after {max(after for _, after in answers):.1f} s at most")
    assert {status for status, _ in answers} == {408}
    assert max(after for _, after in answers) < 20
    assert grown < GROWTH_MB
    await served(xpyd, 50)


async def endless() -> AsyncIterator[bytes]:
    for _ in range(BODY_BYTES // 1_000_000):
        yield b" " * 1_000_000


async def test_what_is_too_large_or_makes_no_sense(xpyd: XpYd) -> None:
    await served(xpyd, 50)
    before = memory_mb(xpyd, "VmRSS")
    serving = asyncio.create_task(served(xpyd, 200))
    large = {f"X-Header-{n}": "value" for n in range(10_000)}
    async with aiohttp.ClientSession(xpyd.url) as client:
        for title, status, request in (
            ("100 MB", 413, {"data": io.BytesIO(b" " * BODY_BYTES), "headers": JSON}),
            ("100 MB, chunked", 413, {"data": endless(), "headers": JSON}),
            (
                "100 MB after Expect: 100-continue",
                413,
                {"data": io.BytesIO(b" " * BODY_BYTES), "headers": JSON, "expect100": True},
            ),
            ("10,000 headers", 431, {"data": b"{}", "headers": JSON | large}),
            ("bad JSON", 400, {"data": b'{"prompt": ', "headers": JSON}),
            ("deep JSON", 400, {"data": b'{"a":' + b"[" * 1_000_000, "headers": JSON}),
            ("no object", 400, {"data": b"[]", "headers": JSON}),
            ("a wrong content type", 415, {"data": b"{}", "headers": {"Content-Type": "text/plain"}}),
        ):
            async with client.post("/v1/completions", **request) as response:
                error = (await response.json())["error"]
            print(f"{title}: {response.status} {error['message'][:100]}")
            assert (response.status, error["code"]) == (status, status)
        await serving
        async with client.post("/v1/completions", data=io.BytesIO(LISTS), headers=JSON) as response:
            assert response.status == 200  # passed on unread
    peak = memory_mb(xpyd, "VmHWM") - before
    print(f"at most {peak:.0f} MB more")
    assert peak < GROWTH_MB


async def test_as_many_large_bodies_as_fit_into_the_bound_and_one_more(xpyd: XpYd) -> None:
    """60 MB each, that are never finished: beyond 1 GiB of them a 429, and what left is given back."""
    host, port = xpyd.url.removeprefix("http://").split(":")
    await served(xpyd, 50)
    before = memory_mb(xpyd, "VmRSS")
    writers = []
    refused = 0
    for _ in range(20):
        reader, writer = await asyncio.open_connection(host, int(port))
        writers.append(writer)
        writer.write(HEAD + b"Content-Length: 60000001\r\n\r\n")
        try:
            for _ in range(60):
                writer.write(b" " * 1_000_000)
                await writer.drain()
            answer = await asyncio.wait_for(reader.readline(), 0.2)
            refused += b" 429 " in answer
        except TimeoutError:
            pass
    peak = memory_mb(xpyd, "VmRSS") - before
    await served(xpyd, 50)
    for writer in writers:
        writer.transport.abort()
    print(f"20 bodies of 60 MB: {refused} refused, {peak:.0f} MB more")
    assert refused == 3
    assert peak < 1024 + GROWTH_MB
    async with asyncio.timeout(10):
        while memory_mb(xpyd, "VmRSS") > before + GROWTH_MB:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.1)
    await served(xpyd, 50)
