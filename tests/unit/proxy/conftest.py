"""Real sockets: a proxy in front of fake engines, and a check that it leaves nothing behind."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import uvloop
from prometheus_client import CollectorRegistry

from services.proxy.app import Proxy
from services.proxy.config import ProxySettings
from services.proxy.core.engine import Role
from services.proxy.engine_http.upstream import Upstream
from services.proxy.server import listen, make_runner
from tests.unit.proxy.fake_engine import EVENTS, Bootstrap, Engine


@dataclass
class Cluster:
    prefills: list[Engine]
    decodes: list[Engine]
    client: aiohttp.ClientSession
    proxy: Proxy
    url: str
    registry: CollectorRegistry
    stop: Callable[[], Awaitable[None]]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of its samples that have at least these labels."""
        families = list(self.registry.collect())
        assert any(f"larder_proxy_{name}".startswith(family.name) for family in families), name
        samples = [sample for family in families for sample in family.samples]
        wanted = [sample for sample in samples if sample.name == f"larder_proxy_{name}"]
        return sum(sample.value for sample in wanted if labels.items() <= sample.labels.items())

    async def metric_is(self, value: float, name: str, **labels: str) -> None:
        """Waits for it: a request is counted when its handler ends, a moment after its client has the answer."""
        async with asyncio.timeout(5):
            while self.metric(name, **labels) != value:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)

    async def complete(self, **fields: Any) -> tuple[int, Any]:
        async with self.client.post("/v1/completions", json={"model": "tiny", "prompt": "hello"} | fields) as response:
            return response.status, await response.json()

    @property
    def legs(self) -> list[tuple[str, str]]:
        """Which engine saw which path, prefills first."""
        return [(engine.name, leg.path) for engine in self.prefills + self.decodes for leg in engine.legs]


StartCluster = Callable[..., Awaitable[Cluster]]


def check_nothing_is_left(proxy: Proxy, upstream: Upstream) -> None:
    """Of a proxy that has ended, and so after every test: no leg, no connection in use, no load, no turn, no body."""
    proxy.fleet.check()
    assert not upstream.legs
    admission = proxy._admission
    assert (admission.running, admission.waiting, admission._buffered) == (0, 0, 0)
    assert not upstream.pool.busy
    assert not any(engine.requests for role in Role for engine in proxy.fleet.engines(role))


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the proxy runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def start_cluster() -> AsyncIterator[StartCluster]:
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:

        async def start(prefills: int = 1, decodes: int = 1, **settings: Any) -> Cluster:
            """Settings are the proxy's own; engines given in them come before the test's."""
            engines = {
                role: [await stack.enter_async_context(Engine(f"{role}{n}").serving()) for n in range(count)]
                for role, count in (("prefill", prefills), ("decode", decodes))
            }
            for role, started in engines.items():
                settings[role] = (*settings.get(role, ()), *(engine.address for engine in started))
            chosen = ProxySettings(**settings)
            key = chosen.openai_api_key
            upstream = Upstream(
                connect_timeout_s=chosen.connect_timeout,
                api_key=key.get_secret_value() if key else None,
                ca_file=chosen.engine_ca_file,
            )
            stack.push_async_callback(upstream.close)
            registry = CollectorRegistry()
            proxy = Proxy(chosen, upstream, registry, accepting=lambda: True)
            runner = make_runner(proxy)
            stack.callback(check_nothing_is_left, proxy, upstream)
            stack.push_async_callback(runner.cleanup)
            url = f"http://127.0.0.1:{await listen(runner, '127.0.0.1', 0)}"
            client = await stack.enter_async_context(aiohttp.ClientSession(url))
            return Cluster(engines["prefill"], engines["decode"], client, proxy, url, registry, runner.cleanup)

        yield start
    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before - {asyncio.current_task()}:  # noqa: ASYNC110 - of the engines, too
            await asyncio.sleep(0.01)


@pytest.fixture
async def cluster(start_cluster: StartCluster) -> Cluster:
    return await start_cluster()


@pytest.fixture
def closed_port() -> str:
    """An address that refuses connections."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def events() -> list[bytes]:
    return EVENTS


@pytest.fixture
async def bootstrap() -> AsyncIterator[Bootstrap]:
    async with Bootstrap("engine-0").serving() as server:
        yield server
