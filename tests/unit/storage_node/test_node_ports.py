"""A node that starts again on ports where connections of its former life linger."""

import asyncio
import socket
from collections.abc import Iterator

import pytest
from larder import engine_ports
from larder.engine_ports import Ports

from services.storage_node import cli
from tests.free_ports import free_ports


@pytest.fixture
def lingering() -> Iterator[Ports]:
    """Ports that a server closed its connections on, a moment ago."""
    with free_ports(4) as text:
        ports = engine_ports.parse(text)
        for port in range(ports.first, ports.last + 1):
            with socket.socket() as server, socket.socket() as client:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind(("127.0.0.1", port))
                server.listen()
                client.connect(("127.0.0.1", port))
                server.accept()[0].close()
                client.recv(1)
        yield ports


async def test_it_waits_until_it_is_told_to_stop(lingering: Ports, caplog: pytest.LogCaptureFixture) -> None:
    stop = asyncio.Event()
    waiting = asyncio.create_task(cli._outwait(lingering, stop))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    stop.set()
    assert await waiting is False
    assert f"waiting for ports of {lingering}" in caplog.text


async def test_it_waits_no_longer_than_ports_linger(lingering: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "LINGER_S", 0.1)
    assert await cli._outwait(lingering, asyncio.Event())


async def test_nobody_waits_for_ports_that_are_free_or_belong_to_others() -> None:
    with free_ports(2) as free, free_ports(0, taken=2) as taken:
        for text in (free, taken):
            assert not engine_ports.lingers(engine_ports.parse(text))
