"""Requests to engines: what the rest of the proxy sees of HTTP to them. Decides nothing.

A Leg is one request to one engine: what is done within it is cut off at the leg's deadline, and when the engine is
found to be lost (cut). Nothing is rewritten on the way: no redirects followed, no cookies kept, no bodies decompressed.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from multidict import CIMultiDict

from services.proxy.core.endpoint import endpoint_of
from services.proxy.core.engine import Address
from services.proxy.core.events import first_event, is_stream
from services.proxy.core.outcomes import Outcome
from services.proxy.deadlines import Deadlines
from services.proxy.engine_http.connection_pool import ConnectionPool
from services.proxy.engine_http.errors import (
    ConnectTimeout,
    Disconnected,
    Exhausted,
    HttpError,
    Refused,
    Unconnected,
)
from services.proxy.engine_http.heads import for_client, header_lines, request_head
from services.proxy.engine_http.response import Response

_STALE_S: Final = 0.5  # a closed idle connection is noticed within a round trip
_STALE_MAX: Final = 3  # in a row; more of them are the engine's doing
_WAIT_ON_S: Final = 0.5
_EVENT_BYTES_MAX: Final = 64 << 10
_REASON_MAX: Final = 300  # characters


class LegFailed(Exception):
    """No whole answer came: outcome says how, str() why. Is mute: the engine took a connection and said nothing."""

    def __init__(self, outcome: Outcome, reason: str, *, is_mute: bool = False) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.is_mute = is_mute


class Answer:
    """An engine's answer, once its head is there."""

    def __init__(self, response: Response, to: Address) -> None:
        self.response = response
        self.to = to
        self.status = response.status
        self.reason = response.reason

    @property
    def headers(self) -> CIMultiDict[str]:
        """Those that the client gets, too."""
        return for_client(self.response.headers, self.to)

    @property
    def is_events(self) -> bool:
        return is_stream(self.response.headers)

    @property
    def is_packed(self) -> bool:
        return "Content-Encoding" in self.response.headers

    @property
    def at_end(self) -> bool:
        """Whether all of it was read."""
        return self.response.at_end

    @property
    def ends_by_close(self) -> bool:
        """Whether only the connection's end says that this was all."""
        return self.response.ends_by_close

    def read(self) -> Coroutine[Any, Any, bytes]:
        """The next bytes as they came, empty at the end."""
        return self.response.read()

    async def read_event(self) -> bytes:
        """Bytes at least up to the end of the first SSE event that has data, or all of the answer."""
        content = await self.read()
        while first_event(content) is None and len(content) < _EVENT_BYTES_MAX:
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
    answer's end cancels the request. Its deadline covers whatever the engine does, until limit() moves it. Late: once
    the deadline has passed or the engine is lost, it is asked again and again whether to give the leg up, until
    settle()."""

    def __init__(
        self, upstream: "Upstream", to: Address, seconds: float | None, late: Callable[[], bool] | None = None
    ) -> None:
        self._upstream = upstream
        self._loop = upstream.loop
        self._response: Response | None = None
        self._failed: LegFailed | None = None
        self._why = "no answer in time"
        self._late = late
        self.to = to
        self.is_lost = False
        self.heard_at: float | None = None
        self.deadline = None if seconds is None else self._loop.time() + seconds

    def __enter__(self) -> Self:
        self._upstream.legs.setdefault(self.to, set()).add(self)
        self._upstream.deadlines.watch(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._upstream.deadlines.forget(self)
        legs = self._upstream.legs[self.to]
        legs.discard(self)
        if not legs:
            del self._upstream.legs[self.to]
        if self._response is not None:
            self._response.close()
        self._failed = None
        if isinstance(error, HttpError):
            raise _leg_failed(error) from error

    async def send(
        self, *, method: str, target: str, lines: bytes, body: bytes, repeatable: bool, anew: bool = False
    ) -> Answer:
        """The answer, once its status line and headers are there. Lines: the headers, as header_lines makes them.
        Anew: over a new connection, as everything unrepeatable is: the engine may be closing an idle one."""
        engine = endpoint_of(self.to)
        head = request_head(method, engine.base + target, engine.authority, lines, len(body))
        stale, anew = 0, anew or not repeatable
        while self._failed is None:
            started = self._loop.time()
            response = self._response = Response(self._loop)
            try:
                await self._upstream.pool.request(response, self.to, head, body, is_head=method == "HEAD", anew=anew)
                return Answer(response, self.to)
            except Unconnected as error:
                if stale and isinstance(error, Refused):
                    raise LegFailed(Outcome.DIED, str(error)) from error
                raise _leg_failed(error, is_mute=isinstance(error, ConnectTimeout) and response.is_taken) from error
            except ValueError as error:  # an impossible host name
                raise LegFailed(Outcome.UNREACHABLE, str(error)) from error
            except Disconnected:
                # That an engine closed an idle connection says nothing about it. Each turn uses up one.
                stale += 1
                is_old = self._loop.time() - started > _STALE_S
                if response.is_new or response.is_heard or not repeatable or is_old or stale > _STALE_MAX:
                    raise
                response.close()
        raise self._failed

    def limit(self, seconds: float, why: str = "no answer in time") -> None:
        """So many seconds are left from now on."""
        self._why = why
        self.deadline = self._loop.time() + seconds

    def settle(self) -> None:
        """Its answer goes to the client: it may take its time, and no other engine is asked."""
        self.deadline = self._late = None

    def lose(self, why: str) -> None:
        """Its engine is lost."""
        self.is_lost = True
        if self._late is None:
            self.cut(why)
        else:
            self.limit(0, why)

    def cut(self, why: str) -> None:
        """Ends it now."""
        response = self._response
        is_connecting = response is not None and response.connecting is not None
        outcome = Outcome.UNCONNECTED if is_connecting else Outcome.TIMED_OUT
        is_mute = response is not None and (response.is_taken or not is_connecting)
        self._failed = LegFailed(outcome, why, is_mute=is_mute)
        if response is not None:
            response.fail(self._failed)

    def expire(self) -> None:
        if self._late is not None and not self._late():
            self.deadline = self._loop.time() + _WAIT_ON_S
            return
        self.deadline = None
        self.cut(self._why)

    def is_silent_for(self, seconds: float) -> bool:
        heard_at = None if self._response is None else self._response.heard_at
        return heard_at is None or self._loop.time() - heard_at >= seconds

    def heard(self) -> float:
        """Notes that bytes came; returns the seconds since the previous ones, 0 for the first."""
        now = self._loop.time()
        gap = 0.0 if self.heard_at is None else now - self.heard_at
        self.heard_at = now
        return gap


class Upstream:
    """Make it where an event loop runs."""

    def __init__(self, *, connect_timeout_s: float, api_key: str | None = None, ca_file: Path | None = None) -> None:
        self._authorization = None if api_key is None else f"Bearer {api_key}"
        self.loop = asyncio.get_running_loop()
        self.legs: dict[Address, set[Leg]] = {}
        self.pool = ConnectionPool(connect_timeout_s=connect_timeout_s, ca_file=ca_file)
        self.deadlines = Deadlines()

    async def close(self) -> None:
        self.deadlines.close()
        await self.pool.close()

    def leg(self, to: Address, seconds: float | None, late: Callable[[], bool] | None = None) -> Leg:
        return Leg(self, to, seconds, late)

    def cut(self, to: Address, *, silent_s: float, why: str) -> None:
        """Ends the legs to a lost engine, except those that heard from it within the last silent_s, and those that are
        better off where they are."""
        for leg in tuple(self.legs.get(to, ())):
            if leg.is_silent_for(silent_s):
                leg.lose(why)

    def authorize(self, headers: CIMultiDict[str]) -> None:
        """Puts in the engines' own key, if the proxy has it."""
        if self._authorization is not None:
            headers["Authorization"] = self._authorization

    async def get(
        self,
        to: Address,
        target: str,
        *,
        seconds: float,
        bytes_max: int,
        headers: Mapping[str, str] = MappingProxyType({"Accept": "application/json"}),
        with_key: bool = True,
        anew: bool = False,
    ) -> tuple[int, bytes]:
        """Status and body of a GET of the proxy's own; raises LegFailed. With key: only for an engine. Anew: over a new
        connection."""
        sent = CIMultiDict(headers)
        if with_key:
            self.authorize(sent)
        lines = header_lines(sent)
        with Leg(self, to, seconds) as leg:
            answer = await leg.send(method="GET", target=target, lines=lines, body=b"", repeatable=True, anew=anew)
            return answer.status, await answer.read_all(bytes_max)


def _leg_failed(error: HttpError, *, is_mute: bool = False) -> LegFailed:
    reason = " ".join(str(error).split())[:_REASON_MAX]
    outcome = next((outcome for kind, outcome in _OUTCOMES if isinstance(error, kind)), Outcome.BROKEN)
    return LegFailed(outcome, reason, is_mute=is_mute)


_OUTCOMES: Final = (
    (Refused, Outcome.UNREACHABLE),
    (Exhausted, Outcome.BUSY),  # the engine has not seen it, and has not failed
    (Unconnected, Outcome.UNCONNECTED),
)
