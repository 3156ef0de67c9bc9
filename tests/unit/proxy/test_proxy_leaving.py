"""Engines that are about to end: they accept no new connections, or report that they are unwell, and finish what they
begun. They get nothing new, and what is under way runs to its end."""

import asyncio
import errno
import json
import socket
from typing import Any

import pytest
from aiohttp import web

from services.proxy.core.engine import Health, Probe, Role
from services.proxy.engine_http.connection_pool import ConnectionPool


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("UP_EVERY_S", 0.1), ("LOST_EVERY_S", 0.05), ("PROBE_S", 0.2)):
        monkeypatch.setattr(f"services.proxy.health.{name}", seconds)


class Held:
    """An engine's answer, held back until it may go."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._may = engine, asyncio.Event()
        engine.act = self._answer

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        await self._may.wait()
        response: web.StreamResponse = await self._engine.answer(request)
        return response

    def let_go(self) -> None:
        self._may.set()


async def until_lost(cluster: Any, role: Role, address: str) -> Any:
    engine = cluster.proxy.fleet.get(role, address)
    async with asyncio.timeout(5):
        while engine.health is Health.UP:  # noqa: ASYNC110 - the proxy's state
            await asyncio.sleep(0.01)
    return engine


async def leave(engine: Any, how: str) -> None:
    """What it does on SIGTERM."""
    if how == "stops listening":
        await engine.stop_listening()
    else:
        engine.healthy = False


@pytest.mark.usefixtures("quick_probes")
@pytest.mark.parametrize("how", ["stops listening", "says 503"])
@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("stream", [False, True])
async def test_requests_on_a_leaving_engine_go_on(start_cluster: Any, role: Role, stream: bool, how: str) -> None:
    cluster = await start_cluster(2, 2)
    leaving = getattr(cluster, f"{role}s")[0]
    held = Held(leaving)
    path = "/v1/completions"
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(cluster.client.post(path, json={"stream": stream}))
        await asyncio.wait_for(leaving.called.wait(), 5)
        await leave(leaving, how)
        engine = await until_lost(cluster, role, leaving.address)
        await asyncio.sleep(0.5)  # two more probes, and then some
        for _ in range(4):
            assert (await cluster.complete())[0] == 200
        assert (len(leaving.legs), leaving.legs[0].cancelled) == (1, False)
        held.let_go()
        response = await asyncio.wait_for(running, 5)
        content = await response.read()
    assert response.status == 200
    assert content.endswith(b"[DONE]\n\n") if stream else json.loads(content)["by"].startswith("decode")
    assert cluster.metric("retries_total") == 0
    assert engine.health is Health.GONE  # its answer does not mean that it accepts more
    assert (await cluster.complete())[0] == 200
    assert len(leaving.legs) == 1
    assert cluster.metric("engine_changes_total") == 1


@pytest.mark.parametrize("role", Role)
async def test_one_request_without_a_connection_takes_no_other_down_with_it(
    start_cluster: Any, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.proxy.health.UP_EVERY_S", 60)
    cluster = await start_cluster(2, 2)
    leaving = getattr(cluster, f"{role}s")[0]
    held = Held(leaving)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(cluster.complete())
        await asyncio.wait_for(leaving.called.wait(), 5)
        await leaving.stop_listening()
        for _ in range(4):  # round robin: at least one of them is refused
            assert (await cluster.complete())[0] == 200
        assert cluster.proxy.fleet.get(role, leaving.address).health is Health.GONE
        held.let_go()
    assert first.result()[0] == 200
    assert (len(leaving.legs), leaving.legs[0].cancelled) == (1, False)


@pytest.mark.usefixtures("quick_probes")
async def test_a_pair_goes_on_although_both_its_engines_leave(start_cluster: Any, bootstrap: Any) -> None:
    cluster = await start_cluster(1, 1, mooncake_bootstrap_port=bootstrap.port)
    pair = [cluster.prefills[0], cluster.decodes[0]]
    helds = [Held(engine) for engine in pair]
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(cluster.complete())
        for role, engine in zip(Role, pair, strict=True):
            await asyncio.wait_for(engine.called.wait(), 5)
            await engine.stop_listening()
            await until_lost(cluster, role, engine.address)
        await asyncio.sleep(0.5)
        for held in helds:
            held.let_go()
    assert running.result() == (200, {"by": "decode0", "choices": [{"text": "é"}]})
    assert [len(engine.legs) for engine in pair] == [1, 1]


@pytest.mark.usefixtures("quick_probes")
async def test_an_engine_whose_new_connections_are_closed_at_once_keeps_its_requests(start_cluster: Any) -> None:
    """As by a proxy in between whose backend has stopped listening."""

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    cluster = await start_cluster(0, 1)
    leaving = cluster.decodes[0]
    held = Held(leaving)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(cluster.complete())
        await asyncio.wait_for(leaving.called.wait(), 5)
        await leaving.stop_listening()
        host, port = leaving.address.split(":")
        async with await asyncio.start_server(close, host, int(port)):
            await until_lost(cluster, Role.DECODE, leaving.address)
            await asyncio.sleep(0.5)
            held.let_go()
            assert (await asyncio.wait_for(running, 5))[0] == 200


@pytest.mark.usefixtures("quick_probes")
@pytest.mark.parametrize("lacking", [errno.EMFILE, errno.EADDRNOTAVAIL])
async def test_the_proxys_own_shortages_are_held_against_no_engine(
    start_cluster: Any, monkeypatch: pytest.MonkeyPatch, lacking: int
) -> None:
    cluster = await start_cluster(1, 1)
    held = Held(cluster.decodes[0])
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(cluster.complete())
        await asyncio.wait_for(cluster.decodes[0].called.wait(), 5)

        async def connect(*_: Any, **__: Any) -> Any:
            raise OSError(lacking, "there is no room")

        with monkeypatch.context() as patch:
            patch.setattr("services.proxy.engine_http.names.Names.addresses", connect)
            await asyncio.sleep(0.5)
            assert [engine.health for role in Role for engine in cluster.proxy.fleet.engines(role)] == [Health.UP] * 2
        held.let_go()
    assert running.result()[0] == 200
    assert (await cluster.complete())[0] == 200
    assert cluster.metric("engine_changes_total") == 0


@pytest.mark.parametrize(
    ("error", "health"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), Health.GONE),
        (OSError(errno.EHOSTUNREACH, "no route"), Health.SILENT),
        (socket.gaierror(-3, "Temporary failure in name resolution"), Health.SILENT),
        (OSError(errno.EMFILE, "too many"), Health.UP),
    ],
)
async def test_what_a_request_without_a_connection_tells_of_its_engine(
    start_cluster: Any, monkeypatch: pytest.MonkeyPatch, error: OSError, health: Health
) -> None:
    monkeypatch.setattr("services.proxy.health.UP_EVERY_S", 60)
    monkeypatch.setattr("services.proxy.health.LOST_EVERY_S", 60)
    cluster = await start_cluster(0, 1)

    async def connect(*_: Any, **__: Any) -> Any:
        raise error.__class__(*error.args)

    with monkeypatch.context() as patch:
        patch.setattr("services.proxy.engine_http.names.Names.addresses", connect)
        patch.setattr(ConnectionPool, "_take", lambda *_: None)  # an idle one would do
        assert (await cluster.complete())[0] == 503
    assert [engine.health for engine in cluster.proxy.fleet.engines(Role.DECODE)] == [health]


@pytest.mark.parametrize("scheme", ["", "https://"])
async def test_an_engine_that_accepts_a_connection_and_says_nothing_is_silent(
    start_cluster: Any, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TLS, this is before the connection is made."""
    monkeypatch.setattr("services.proxy.health.PROBE_S", 0.3)
    cluster = await start_cluster(0, 1)

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        address = "{}{}:{}".format(scheme, *server.sockets[0].getsockname())
        assert await cluster.proxy.health._probe(address) is Probe.NO_ANSWER
