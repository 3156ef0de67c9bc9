"""Requests to engines: what of them the proxy sees. With wire, all that speaks HTTP as a client; it decides nothing.

A Leg is one request to one engine: what is done within it is cut off at the leg's deadline, and when the engine is
found to be lost (cut). Nothing is rewritten on the way: no redirects followed, no cookies kept, no bodies decompressed.
"""

import asyncio
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Final, Self

import aiohttp
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict, MultiMapping
from yarl import URL

from services.proxy.core.fleet import Address
from services.proxy.core.legs import first_data
from services.proxy.core.routing import Outcome
from services.proxy.wire import Connection, Wire

_STALE_S: Final = 0.5  # an idle connection that was closed is found out within a round trip
_STALE_MAX: Final = 3  # in a row; more are the engine's doing
_EVENT_BYTES_MAX: Final = 64 << 10
_REASON_MAX: Final = 300  # characters; aiohttp quotes what it could not read
_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}) | {
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
}


class LegFailed(Exception):
    """No (whole) answer came; outcome says how, str() says why."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class Answer:
    """An engine's answer, from its status line on."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.reason = response.reason

    @property
    def headers(self) -> CIMultiDict[str]:
        return end_to_end(self._response.headers)

    @property
    def is_events(self) -> bool:
        return self._response.content_type == "text/event-stream"

    @property
    def is_text(self) -> bool:
        """Whether its head can be passed on: status line and headers are UTF-8."""
        return is_text("".join((self.reason or "", *self._response.headers.values())))

    @property
    def at_end(self) -> bool:
        """Whether everything was read."""
        return self._response.content.at_eof()

    async def read(self) -> bytes:
        """The next bytes as they came, empty at the end."""
        return await self._response.content.readany()

    async def read_event(self) -> bytes:
        """The bytes up to the end of the first SSE event that has data at least, or to the end of the answer."""
        content = await self.read()
        while first_data(content) is None and len(content) < _EVENT_BYTES_MAX:
            if not (more := await self.read()):
                break
            content += more
        return content

    async def read_all(self, bytes_max: int) -> bytes:
        """The whole body; raises LegFailed if there is more."""
        content = bytearray()
        while more := await self.read():
            content += more
            if len(content) > bytes_max:
                raise LegFailed(Outcome.BROKEN, f"its answer is over {bytes_max} bytes")
        return bytes(content)


class Leg:
    """One request to an engine, as a context. What fails within it comes out as LegFailed; leaving it before the
    answer's end cancels the request. Its deadline is for everything done within, until limit() moves it."""

    def __init__(self, upstream: "Upstream", to: Address, seconds: float | None) -> None:
        self._upstream = upstream
        self.to = to
        self._timeout = asyncio.timeout(seconds)
        self._response: aiohttp.ClientResponse | None = None
        self._why = "no answer in time"
        self._loop = upstream.loop
        self.heard_at: float | None = None

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._upstream.legs.setdefault(self.to, set()).add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        legs = self._upstream.legs[self.to]
        legs.discard(self)
        if not legs:
            del self._upstream.legs[self.to]
        if self._response is not None and not self._response.closed:  # it is where it was read to its end
            self._response.close()
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise LegFailed(Outcome.TIMED_OUT, self._why) from error
        if isinstance(error, aiohttp.ClientError | HttpProcessingError | OSError):
            raise _leg_failed(error) from error

    async def send(
        self,
        *,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        repeatable: bool,
        with_key: bool = True,
    ) -> Answer:
        """The answer, once its status line and headers are there. With key: the engines' own, if the proxy has it."""
        self._response = await self._upstream.open(self.to, method, target, headers, body, repeatable, with_key)
        return Answer(self._response)

    def limit(self, seconds: float | None, why: str = "no answer in time") -> None:
        """From now on so many seconds are left; None: as many as it takes."""
        if self._timeout.expired():
            return  # it is ending
        self._why = why
        self._timeout.reschedule(None if seconds is None else self._loop.time() + seconds)

    def heard(self) -> float:
        """Notes that bytes came; returns the seconds since the last ones, 0 at first."""
        now = self._loop.time()
        gap = 0.0 if self.heard_at is None else now - self.heard_at
        self.heard_at = now
        return gap


class Upstream:
    """Make it where an event loop runs."""

    def __init__(self, *, connect_timeout_s: float, api_key: str | None = None) -> None:
        self._api_key = api_key
        self.loop = asyncio.get_running_loop()
        self.legs: dict[Address, set[Leg]] = {}
        self._wire = Wire(connect_timeout_s=connect_timeout_s)

    async def close(self) -> None:
        await self._wire.close()

    def leg(self, to: Address, seconds: float | None) -> Leg:
        return Leg(self, to, seconds)

    def cut(self, to: Address, *, silent_s: float, why: str) -> None:
        """Ends the legs to an engine that is lost, but for those that it told something in the last silent_s."""
        for leg in tuple(self.legs.get(to, ())):
            if leg.heard_at is None or self.loop.time() - leg.heard_at >= silent_s:
                leg.limit(0, why)

    async def get(
        self,
        to: Address,
        target: str,
        *,
        seconds: float,
        bytes_max: int,
        headers: Mapping[str, str] = MappingProxyType({"Accept": "application/json"}),
        with_key: bool = True,
    ) -> tuple[int, bytes]:
        """Status and body of a GET of the proxy's own; raises LegFailed. With key: only where an engine listens."""
        async with Leg(self, to, seconds) as leg:
            answer = await leg.send(
                method="GET", target=target, headers=headers, body=b"", repeatable=True, with_key=with_key
            )
            return answer.status, await answer.read_all(bytes_max)

    async def open(
        self,
        to: Address,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        repeatable: bool,
        with_key: bool,
    ) -> aiohttp.ClientResponse:
        sent = CIMultiDict(headers)
        if with_key and self._api_key is not None:
            sent["Authorization"] = f"Bearer {self._api_key}"
        url = URL(f"http://{to}{target}", encoded=True)
        stale = 0
        while True:
            connection, started = Connection(), self.loop.time()
            try:
                return await self._wire.request(method, url, sent, body, connection)
            except aiohttp.ClientConnectorError as error:
                if stale:
                    raise LegFailed(Outcome.DIED, str(error)) from error
                raise
            except ValueError as error:  # a host name that cannot be one
                raise LegFailed(Outcome.UNREACHABLE, str(error)) from error
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # An idle connection that the engine closed says nothing about the engine. Each turn uses up one.
                stale += 1
                is_old = self.loop.time() - started > _STALE_S
                if connection.is_new or not repeatable or is_old or stale > _STALE_MAX:
                    raise


def end_to_end(headers: MultiMapping[str]) -> CIMultiDict[str]:
    """The headers without those that speak of one connection only (RFC 9110, 7.6.1)."""
    kept = CIMultiDict(headers)
    for listed in headers.getall("Connection", ()):
        for name in listed.split(","):
            kept.popall(name.strip(), None)
    for name in _HOP_BY_HOP:
        kept.popall(name, None)
    return kept


def is_text(value: str) -> bool:
    """False for what came as other bytes than UTF-8's, which aiohttp reads as lone surrogates, and does not write."""
    return value.isascii() or not any("\udc80" <= character <= "\udcff" for character in value)


def _leg_failed(error: Exception) -> LegFailed:
    reason = " ".join(str(error).split())[:_REASON_MAX] or type(error).__name__
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return LegFailed(Outcome.UNCONNECTED, reason)
    if isinstance(error, aiohttp.ClientConnectorError):
        return LegFailed(Outcome.UNREACHABLE, reason)
    if isinstance(error, TimeoutError):
        return LegFailed(Outcome.TIMED_OUT, "no answer in time")
    return LegFailed(Outcome.BROKEN, reason)
