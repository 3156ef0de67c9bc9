"""What operators change while real processes serve: engines, workers that die or hang, restarts of the whole proxy."""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from demo.processes import ProcessError
from tests.e2e.xpyd import XpYd, load

WORKERS = 3
KEY = {"X-API-Key": "secret"}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def xpyd(tmp_path: Path) -> Iterator[XpYd]:
    with XpYd(tmp_path) as cluster:
        for name in ("p0", "d0", "d1"):
            cluster.start_engine(name)
        yield cluster


def start(xpyd: XpYd, *flags: str, port: int = 0) -> str:
    return xpyd.start_proxy(["p0"], ["d0", "d1"], "--workers", str(WORKERS), *flags, port=port, ADMIN_API_KEY="secret")


def workers_of(xpyd: XpYd) -> list[int]:
    assert xpyd.proxy is not None
    return sorted(set(xpyd.proxy.members()) - {xpyd.proxy.pid})


@asynccontextmanager
async def fresh_client(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Every request over a connection of its own, so that all workers get some."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(url, connector=connector, headers=KEY) as client:
        yield client


@asynccontextmanager
async def client_of_one_that_answers(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Every request over one connection, to a worker that does not hang. Which one a connection comes to is chance."""
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=1), headers=KEY) as client:
        async with asyncio.timeout(15):
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5), client.get("/health") as response:
                        await response.read()
                        break
        yield client


async def tell(client: aiohttp.ClientSession, what: str, address: str) -> int:
    async with client.post(f"/instances/{what}", json={"type": "decode", "instance": address}) as response:
        return response.status


async def seen(xpyd: XpYd, name: str, what: str = "decodes") -> int:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://{xpyd.addresses[name]}/counts") as response,
    ):
        count: int = (await response.json())[what]
        return count


async def legs(client: aiohttp.ClientSession) -> tuple[int, dict[str, int]]:
    async with client.get("/instances") as response:
        listed = (await response.json())["instances"]
        return response.status, {each["instance"]: each["legs"] for each in listed}


async def metric(client: aiohttp.ClientSession, pattern: str) -> float:
    async with client.get("/metrics") as response:
        text = await response.text()
    return sum(float(value) for value in re.findall(f"^larder_proxy_{pattern} (.*)$", text, re.MULTILINE))


async def complete(client: aiohttp.ClientSession, **fields: Any) -> int:
    async with client.post("/v1/completions", json={"prompt": "x", "max_tokens": 2} | fields) as response:
        await response.read()
        return response.status


async def test_a_response_is_followed_at_its_engine_whichever_worker_is_asked(xpyd: XpYd) -> None:
    async with fresh_client(start(xpyd)) as client:

        async def respond(before: str | None = None) -> str:
            asked = {"model": "tiny", "input": "x", "previous_response_id": before}
            async with client.post("/v1/responses", json=asked) as response:
                assert response.status == 200, await response.text()
                id: str = (await response.json())["id"]
                return id

        for _ in range(10):
            id = await respond()
            for _ in range(4):
                id = await respond(id)
    assert [await seen(xpyd, name, "lookups") for name in ("d0", "d1")] == [0, 0]  # the workers told each other


async def test_after_a_drain_is_answered_no_worker_sends_anything_there(xpyd: XpYd) -> None:
    url = start(xpyd)
    async with fresh_client(url) as client:
        loading = asyncio.create_task(load(url, 600, 16))
        for _ in range(5):
            assert await tell(client, "drain", xpyd.addresses["d0"]) == 200
            await asyncio.sleep(0.1)  # what was sent before has arrived
            before = await seen(xpyd, "d0")
            await asyncio.sleep(0.2)
            assert await seen(xpyd, "d0") == before
            assert await tell(client, "add", xpyd.addresses["d0"]) == 200
            await asyncio.sleep(0.2)
            assert await seen(xpyd, "d0") > before or loading.done()
        assert not [done.error for done in await loading if done.error]


async def test_numbers_are_those_of_all_workers(xpyd: XpYd) -> None:
    url = start(xpyd)
    async with fresh_client(url) as client:
        long = [asyncio.create_task(complete(client, max_tokens=1000)) for _ in range(12)]
        await asyncio.sleep(0.5)
        status, under_way = await legs(client)
        assert status == 200
        assert under_way[xpyd.addresses["d0"]] + under_way[xpyd.addresses["d1"]] == 12
        assert await metric(client, 'engine_legs.*role="decode".*') == 12
        assert await metric(client, "in_flight") == 12
        assert await asyncio.gather(*long) == [200] * 12
        assert await metric(client, 'requests_total.*completions".*') == 12
        assert await metric(client, r"decode_seconds_bucket.*le=\"\+Inf\".*") == 12
        assert await metric(client, 'engines{role="decode"}') == 2
        assert await metric(client, 'engine_up.*role="decode".*') == 2


async def test_a_worker_that_is_killed_is_started_again_and_its_numbers_stay(xpyd: XpYd) -> None:
    url = start(xpyd)
    async with fresh_client(url) as client:
        assert await tell(client, "drain", xpyd.addresses["d0"]) == 200
        assert [await complete(client) for _ in range(12)] == [200] * 12
        counted = 'requests_total.*completions".*'
        assert await metric(client, counted) == 12
        before = workers_of(xpyd)
        os.kill(before[1], signal.SIGKILL)
        served = failed = 0
        deadline = time.monotonic() + 20
        while workers_of(xpyd) == before or len(workers_of(xpyd)) < WORKERS or served < 30:
            assert time.monotonic() < deadline
            try:
                assert await complete(client) == 200
                served += 1
            except aiohttp.ClientError:
                failed += 1  # it was in the queue of the one that died
            assert await metric(client, counted) >= 12
        assert failed <= 1
        assert xpyd.proxy is not None
        await asyncio.to_thread(xpyd.proxy.wait_line, r".*worker \d serves again", 20)
        assert await metric(client, counted) == 12 + served
        before_d0 = await seen(xpyd, "d0")
        assert [await complete(client) for _ in range(12)] == [200] * 12
        assert await seen(xpyd, "d0") == before_d0  # the new one knows of the drain


async def test_a_worker_that_hangs_is_told_and_follows(xpyd: XpYd) -> None:
    url = start(xpyd)
    hung = workers_of(xpyd)[1]
    async with fresh_client(url) as client:
        os.kill(hung, signal.SIGSTOP)
        try:
            async with client_of_one_that_answers(url) as other:
                statuses = [await tell(other, what, xpyd.addresses["d0"]) for what in ("drain", "add", "drain")]
                assert statuses == [202, 202, 202]
                assert (await legs(other))[0] == 503
        finally:
            os.kill(hung, signal.SIGCONT)
        await asyncio.sleep(0.5)
        before = await seen(xpyd, "d0")
        assert [await complete(client) for _ in range(20)] == [200] * 20
        assert await seen(xpyd, "d0") == before
        assert (await legs(client))[0] == 200
        os.kill(hung, signal.SIGSTOP)
        assert xpyd.proxy is not None
        age_s = xpyd.proxy.age_s
        await asyncio.to_thread(xpyd.proxy.wait_line, r".*worker \d serves again", age_s + 40)
        assert hung not in workers_of(xpyd)


async def test_a_decode_engine_is_replaced_under_load(xpyd: XpYd) -> None:
    url = start(xpyd)
    loading = asyncio.create_task(load(url, 800, 16))
    async with fresh_client(url) as client:
        await asyncio.to_thread(xpyd.start_engine, "d0-new")
        assert await tell(client, "add", xpyd.addresses["d0-new"]) == 200
        assert await tell(client, "drain", xpyd.addresses["d0"]) == 200
        async with asyncio.timeout(10):
            while (await legs(client))[1][xpyd.addresses["d0"]]:  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.02)
        assert await tell(client, "remove", xpyd.addresses["d0"]) == 200
        xpyd.engines["d0"].kill()
    done = await loading
    assert len(done) == 800
    assert not [each.error for each in done if each.error]
    assert not xpyd.hit()
    assert await seen(xpyd, "d0-new") > 0


async def test_sigterm_drains_all_workers(xpyd: XpYd) -> None:
    url = start(xpyd)
    loading = asyncio.create_task(load(url, 16, 16, tokens=200))
    await asyncio.sleep(0.3)
    assert xpyd.proxy is not None
    os.kill(xpyd.proxy.pid, signal.SIGTERM)
    assert not [done.error for done in await loading if done.error]
    assert await asyncio.to_thread(xpyd.proxy.wait, 10) == 0
    assert not xpyd.proxy.members()
    assert "Traceback" not in xpyd.proxy.output()


async def test_workers_end_with_a_parent_that_was_killed_and_what_was_changed_stays(
    xpyd: XpYd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    flags = ("--state-file", str(tmp_path / "state.json"))
    url = start(xpyd, *flags)
    async with fresh_client(url) as client:
        assert await tell(client, "remove", xpyd.addresses["d0"]) == 200
    first = xpyd.proxy
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while first.members():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert not list(scratch.glob("larder-proxy-*"))
    again = start(xpyd, *flags, port=int(url.rpartition(":")[2]))
    assert again == url
    async with fresh_client(url) as client:
        assert (await legs(client))[1].keys() == {xpyd.addresses["p0"], xpyd.addresses["d1"]}


async def test_a_port_that_is_taken_and_a_damaged_state_file_are_clear_lines(xpyd: XpYd, tmp_path: Path) -> None:
    url = start(xpyd)
    first = xpyd.proxy
    port = int(url.rpartition(":")[2])
    with pytest.raises(ProcessError, match=f"cannot listen on 127.0.0.1:{port}: .*; choose another --port"):
        start(xpyd, port=port)
    state = tmp_path / "state.json"
    state.write_text("{")
    with pytest.raises(ProcessError, match=f"{state} is not a state file of this proxy, or it is damaged"):
        start(xpyd, "--state-file", str(state))
    assert xpyd.proxy is not None
    assert "Traceback" not in xpyd.proxy.output()
    assert first is not None
    assert first.running()
