"""Why a node is not reached, in words: refused, timed out, unknown, or reached and yet no bytes."""

import asyncio
import socket
import time
from unittest.mock import patch

import pytest
from larder.diagnosis import why_unreached
from larder.mover import Mover
from larder.places import Segment
from larder.stats import Stats


def segment(endpoint: str, node: str = "n1", token: bytes = b"t") -> Segment:
    return Segment(1, node, 1 << 20, "/dev/shm/none", token, 4096, endpoint, 4096, "tcp")  # noqa: S108


def refusing() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def test_a_port_that_nobody_listens_on_is_refused() -> None:
    assert "connection refused" in await why_unreached(refusing())


async def test_a_port_that_answers_is_told_apart() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert "accepts connections" in await why_unreached(f"127.0.0.1:{port}")
    server.close()
    await server.wait_closed()


async def test_what_is_dropped_times_out_in_the_time_given() -> None:
    async def dropped(*_: object) -> None:
        await asyncio.sleep(60)

    begun = time.monotonic()
    with patch("asyncio.open_connection", dropped):
        assert "timed out after 0.2 s" in await why_unreached("192.0.2.1:9", 0.2)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("number", [113, 101])
async def test_no_way_there_is_said(number: int) -> None:
    async def no_way(*_: object) -> None:
        raise OSError(number, "")

    with patch("asyncio.open_connection", no_way):
        assert "no route" in await why_unreached("192.0.2.1:9")


async def test_a_name_that_is_no_address_is_not_tried() -> None:
    assert "metadata server" in await why_unreached("node-1-42")


async def test_each_node_is_explained_once_with_its_address() -> None:
    mover = Mover(("engine",), Stats())
    first, second = refusing(), refusing()
    places = {3: [segment(first), segment(second, "n2", b"u")], 5: [segment(first)]}
    told = await mover.explain(places, time.monotonic() + 5)
    assert told[5].startswith(f"node n1 at {first}: connection refused")
    assert told[3].startswith(told[5])
    assert f"node n2 at {second}: connection refused" in told[3]
    with patch("larder.transports.engine.why_unreached") as asked:
        assert await mover.explain(places, time.monotonic() + 5) == told
    asked.assert_not_called()
    await mover.close()


async def test_where_no_engine_leads_there_that_is_said() -> None:
    mover = Mover(("shm",), Stats())
    assert "transports leave the engine out" in (await mover.explain({0: [segment("127.0.0.1:9")]}, 0))[0]
    await mover.close()
    mover = Mover(("shm", "engine"), Stats())
    assert "has no transfer engine" in (await mover.explain({0: [segment("")]}, 0))[0]
    assert "in time" in (await mover.explain({0: [segment("127.0.0.1:9")]}, 0))[0]
    await mover.close()
