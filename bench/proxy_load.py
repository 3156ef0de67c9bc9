"""The load on the proxies of bench.proxy: clients that each send a request once they have the answer to the last.

A client has one kept-alive connection per address it asks: the proxy's, or, for the floor, the two engines' one after
the other. Built on a bare protocol, so that it costs little itself. Every answer is checked: its status, its
framing and the mark at its end.
"""

import asyncio
import gc
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.proxy_engine import HOST, MARK, PACED

DEADLINE_S = 20.0
SENTENCE = "The cache of a prompt that was seen before need not be computed a second time.\n"
# As the openai package for Python sends it.
HEAD = f"""\
POST /v1/chat/completions HTTP/1.1
Host: {HOST}
Accept-Encoding: gzip, deflate
Connection: keep-alive
Accept: application/json
Content-Type: application/json
User-Agent: OpenAI/Python 1.99.0
X-Stainless-Lang: python
X-Stainless-Package-Version: 1.99.0
X-Stainless-OS: Linux
X-Stainless-Arch: x64
X-Stainless-Runtime: CPython
X-Stainless-Runtime-Version: 3.11.7
Authorization: Bearer none
X-Stainless-Async: false
x-stainless-retry-count: 0
x-stainless-read-timeout: 600
Content-Length: {{length}}

"""


@dataclass(frozen=True)
class Shape:
    """A request's prompt length, and how its answer comes."""

    prompt_bytes: int
    streamed: bool
    paced: bool = False

    @property
    def name(self) -> str:
        answer = "paced stream" if self.paced else "streamed" if self.streamed else "not streamed"
        prompt = f"{self.prompt_bytes / 1024:.0f} KiB" if self.prompt_bytes >= 1024 else f"{self.prompt_bytes} bytes"
        return f"{answer}, prompt of {prompt}"

    def payload(self, *, prefill: bool = False) -> bytes:
        """The request as it goes out; `prefill`: the leg that a proxy would make of it."""
        prompt = (SENTENCE * math.ceil(self.prompt_bytes / len(SENTENCE)))[: self.prompt_bytes]
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "tiny", "messages": messages, "max_tokens": 16, "temperature": 0.0, "stream": self.streamed}
        body |= {"user": PACED if self.paced else "bench"}
        body |= {"max_tokens": 1, "stream": False} if prefill else {}
        content = json.dumps(body).encode()
        return HEAD.format(length=len(content)).replace("\n", "\r\n").encode() + content


@dataclass(frozen=True)
class Load:
    """What one run of the load saw."""

    seconds: float
    latencies_s: list[float]
    """Of every request, from sending it to the last byte of its answer, sorted."""

    @property
    def per_s(self) -> float:
        return len(self.latencies_s) / self.seconds

    def quantile(self, share: float) -> float:
        return self.latencies_s[min(len(self.latencies_s) - 1, int(share * len(self.latencies_s)))]


class Connection(asyncio.Protocol):
    """Sends one request at a time; raises what went wrong."""

    def __init__(self) -> None:
        self._held = b""
        self._whole: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(ConnectionError(f"the connection was closed in the middle of it: {error}"))

    def ask(self, payload: bytes) -> asyncio.Future[None]:
        self._whole = asyncio.get_running_loop().create_future()
        self._transport.write(payload)
        return self._whole

    def data_received(self, data: bytes) -> None:
        self._held += data
        if not is_whole(self._held):
            return
        answer, self._held = self._held, b""
        if self._whole is None or self._whole.done():
            return
        if answer.startswith(b"HTTP/1.1 200 ") and MARK in answer:
            self._whole.set_result(None)
        else:
            self._whole.set_exception(ValueError(f"not the engine's answer: {answer[:400]!r}"))

    def close(self) -> None:
        self._transport.close()


def is_whole(answer: bytes) -> bool:
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = answer[: end + 2].lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        return answer.endswith(b"\r\n0\r\n\r\n")
    return len(answer) >= end + 4 + int(head[at + 17 : head.index(b"\r", at + 17)])


async def run(ports: Sequence[int], shape: Shape, *, clients: int, seconds: float) -> Load:
    """So many clients, each of which asks all ports in turn: the last with the request, the one before its prefill."""
    loop = asyncio.get_running_loop()
    payloads = [*(shape.payload(prefill=True) for _ in ports[1:]), shape.payload()]
    legs: list[list[tuple[Connection, bytes]]] = []
    latencies: list[float] = []
    gc.disable()
    try:
        async with asyncio.timeout(seconds + DEADLINE_S):
            for _ in range(clients):
                made = [(await loop.create_connection(Connection, HOST, port))[1] for port in ports]
                legs.append(list(zip(made, payloads, strict=True)))
            await asyncio.gather(*(_ask(leg, 0.0, []) for leg in legs))  # one each, to warm up
            begun = time.perf_counter()
            await asyncio.gather(*(_ask(leg, begun + seconds, latencies) for leg in legs))
            taken = time.perf_counter() - begun
    finally:
        gc.enable()
        for leg in legs:
            for connection, _ in leg:
                connection.close()
    return Load(taken, sorted(latencies))


async def _ask(legs: list[tuple[Connection, bytes]], until: float, latencies: list[float]) -> None:
    now = time.perf_counter()
    while True:
        begun = now
        for connection, payload in legs:
            await connection.ask(payload)
        now = time.perf_counter()
        latencies.append(now - begun)
        if now >= until:
            return
