"""Clients that are slow, too many, too large, or do not speak HTTP: what each is answered, over raw sockets."""

import asyncio
import json
from typing import Any

import pytest

from services.proxy import client_limits, intake

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + b"Content-Length: 2\r\n\r\n{}"
MANY_HEADERS = HEAD + b"".join(b"X-Header-%d: value\r\n" % n for n in range(10_000)) + b"\r\n"


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """As little as a test has."""
    monkeypatch.setattr(client_limits, "HEAD_S", 0.3)
    monkeypatch.setattr(client_limits, "IDLE_S", 0.6)
    monkeypatch.setattr(intake, "_BODY_S", 0.6)


class Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, Any]:
        """Status and JSON."""
        async with asyncio.timeout(5):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            assert b"content-type: application/json" in head.lower()
            return int(head.split()[1]), json.loads(await self.reader.readexactly(length))

    async def closed(self) -> bool:
        """Waits for the proxy to close."""
        return await asyncio.wait_for(self.reader.read(), 5) == b""

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def connect(cluster: Any) -> Peer:
    host, port = cluster.url.removeprefix("http://").split(":")
    return Peer(*await asyncio.open_connection(host, int(port)))


async def refused(peer: Peer, status: int, reason: str) -> None:
    got, answer = await peer.answer()
    assert (got, answer["error"]["code"]) == (status, status)
    assert reason in answer["error"]["message"]
    assert await peer.closed()
    await peer.close()


@pytest.mark.parametrize(
    ("request_bytes", "status", "reason"),
    [
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "Invalid character in chunk size"),
        (b"\x16\x03\x01 garbage\r\n\r\n", 400, "HTTPS traffic on an HTTP port"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nno header\r\n\r\n", 400, "not understood"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "not understood"),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400, "not understood"),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "not understood"),
        (HEAD + b"X-Long: " + b"a" * 20_000 + b"\r\n\r\n", 431, "more than 8190 bytes"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, "more than 8190 bytes"),
        (MANY_HEADERS, 431, "Too many headers"),
    ],
)
async def test_garbage_and_oversized_heads_are_refused(
    cluster: Any, request_bytes: bytes, status: int, reason: str
) -> None:
    peer = await connect(cluster)
    peer.writer.write(request_bytes)
    got, answer = await peer.answer()
    assert (got, answer["error"]["code"]) == (status, status)
    assert reason in answer["error"]["message"]
    await peer.close()
    assert cluster.legs == []
    assert (await cluster.complete())[0] == 200


async def test_a_client_that_is_still_sending_can_read_why_it_is_refused(cluster: Any) -> None:
    peer = await connect(cluster)
    for at in range(0, len(MANY_HEADERS), 4096):
        peer.writer.write(MANY_HEADERS[at : at + 4096])
        await peer.writer.drain()
        await asyncio.sleep(0.001)
    await refused(peer, 431, "Too many headers")


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("before", [b"", WHOLE])
async def test_a_head_has_a_deadline(cluster: Any, before: bytes) -> None:
    """The first on a connection, and later ones."""
    peer = await connect(cluster)
    if before:
        peer.writer.write(before)
        assert (await peer.answer())[0] == 200
    for at in range(6):
        peer.writer.write(HEAD[at : at + 1])  # a byte now and then does not extend it
        await asyncio.sleep(0.07)
    await refused(peer, 408, "head did not arrive within 0.3 s")


@pytest.mark.usefixtures("patience")
async def test_a_head_that_comes_in_pieces_is_served(cluster: Any) -> None:
    peer = await connect(cluster)
    for _ in range(3):  # each has its own deadline
        for at in range(0, len(WHOLE), 20):
            peer.writer.write(WHOLE[at : at + 20])
            await asyncio.sleep(0.02)
        assert (await peer.answer())[0] == 200
    await peer.close()


@pytest.mark.usefixtures("patience")
async def test_an_unfinished_head_is_bounded_in_bytes(cluster: Any) -> None:
    peer = await connect(cluster)
    peer.writer.write(HEAD + b"".join(b"X-%d: %b\r\n" % (n, b"v" * 2_000) for n in range(60)))
    await refused(peer, 431, "head is over 65536 bytes")


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("status", [408, 431])
async def test_a_refused_client_that_keeps_sending_is_cut_off(
    cluster: Any, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_limits, "_LINGER_S", 0.3)
    peer = await connect(cluster)
    lines = 60 if status == 431 else 1
    peer.writer.write(HEAD + b"".join(b"X-%d: %b\r\n" % (n, b"v" * 2_000) for n in range(lines)))
    assert (await peer.answer())[0] == status
    assert await peer.closed()

    async def go_on() -> None:
        while True:
            peer.writer.write(b"X-More: 1\r\n")
            await peer.writer.drain()
            await asyncio.sleep(0.05)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(go_on(), 5)
    peer.writer.close()


@pytest.mark.usefixtures("patience")
async def test_a_body_has_a_deadline_of_its_own(cluster: Any) -> None:
    peer = await connect(cluster)
    peer.writer.write(HEAD + b"Content-Length: 10\r\n\r\n")
    for _ in range(4):
        await asyncio.sleep(0.1)  # beyond the head's
        peer.writer.write(b" ")
    await peer.writer.drain()
    status, answer = await peer.answer()
    assert status == 408
    assert "body did not arrive" in answer["error"]["message"]
    await peer.close()
    assert cluster.legs == []


@pytest.mark.usefixtures("patience")
async def test_an_idle_connection_is_closed_but_a_busy_one_is_not(cluster: Any, events: list[bytes]) -> None:
    idle = [await connect(cluster) for _ in range(2)]
    idle[1].writer.write(WHOLE)
    assert (await idle[1].answer())[0] == 200
    engine = cluster.decodes[0]
    engine.next_event = asyncio.Semaphore(1)
    async with cluster.client.post("/v1/completions", json={"stream": True}) as response:
        for peer in idle:
            assert await peer.closed()
            await peer.close()
        for _ in events:
            engine.next_event.release()
        assert await response.read() == b"".join(events)


async def test_connections_are_bounded(start_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_limits, "CONNECTIONS_MAX", 3)
    cluster = await start_cluster()
    peers = [await connect(cluster) for _ in range(3)]
    await asyncio.sleep(0.1)
    await refused(await connect(cluster), 503, "as many connections as it may have")
    for peer in peers:
        peer.writer.write(WHOLE)
        assert (await peer.answer())[0] == 200
        await peer.close()
    await asyncio.sleep(0.1)
    assert (await cluster.complete())[0] == 200


@pytest.mark.parametrize("how", [b"Content-Length: 100000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
async def test_a_body_that_is_too_large_is_refused_before_it_arrives(
    cluster: Any, how: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "BODY_BYTES_MAX", 1 << 20)
    peer = await connect(cluster)
    peer.writer.write(HEAD + how)
    if b"chunked" in how:
        for _ in range(17):
            peer.writer.write(b"10000\r\n" + b" " * (1 << 16) + b"\r\n")
    status, answer = await peer.answer()
    assert status == 413
    assert "over 1048576 bytes" in answer["error"]["message"]
    await peer.close()
    assert cluster.legs == []
    assert cluster.metric("requests_total", code="413", outcome="refused") == 1


async def test_bodies_of_all_requests_together_are_bounded(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.proxy.admission.BUFFERED_BYTES_MAX", 100_000)
    peers = [await connect(cluster) for _ in range(2)]
    peers[0].writer.write(HEAD + b"Content-Length: 90001\r\n\r\n" + b" " * 90_000)
    await asyncio.sleep(0.1)
    peers[1].writer.write(HEAD + b"Content-Length: 20000\r\n\r\n" + b" " * 20_000)
    status, answer = await peers[1].answer()
    assert (status, "hold too many bytes" in answer["error"]["message"]) == (429, True)
    for peer in peers:
        await peer.close()
    await cluster.metric_is(0, "in_flight")
    assert cluster.proxy._admission._buffered == 0
    assert (await cluster.complete())[0] == 200


async def test_an_idle_connection_is_closed_at_once_when_the_proxy_drains(cluster: Any, events: list[bytes]) -> None:
    """Or the next request over it would wait for those under way, and get no answer."""
    never, used = await connect(cluster), await connect(cluster)
    used.writer.write(WHOLE)
    assert (await used.answer())[0] == 200
    engine = cluster.decodes[0]
    engine.next_event = asyncio.Semaphore(1)
    async with cluster.client.post("/v1/completions", json={"stream": True}) as response:
        draining = asyncio.create_task(cluster.stop())
        for peer in (never, used):
            assert await peer.closed()
            await peer.close()
        assert not draining.done()
        for _ in events:
            engine.next_event.release()
        assert await response.read() == b"".join(events)
    await draining


async def test_a_request_whose_body_is_still_coming_when_the_proxy_drains_is_served(cluster: Any) -> None:
    peer = await connect(cluster)
    peer.writer.write(WHOLE[:-1])
    await cluster.metric_is(1, "in_flight")
    draining = asyncio.create_task(cluster.stop())
    await asyncio.sleep(0.1)
    peer.writer.write(WHOLE[-1:])
    assert (await peer.answer())[0] == 200
    assert await peer.closed()
    await peer.close()
    await asyncio.wait_for(draining, 5)
