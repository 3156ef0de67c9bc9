"""What one request's client gets: an engine's answer, passed on, or the proxy's own word on why there is none.

An answer that breaks off ends so that its client notices: a stream of events with an error in its protocol's form;
everything else, and a stream whose form is not known or that stands within an event, with an aborted connection. No
part is ever taken for the whole. Keeps invariant 12 for its part: a client that takes nothing is let go.
"""

import contextlib
import logging
import socket
import struct
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from aiohttp import web
from multidict import CIMultiDict

from services.proxy.aiohttp_inner import PassedOn, StreamWriter
from services.proxy.call import Call
from services.proxy.core.events import Events, error_event, form_of, is_last, is_stream
from services.proxy.core.outcomes import Outcome
from services.proxy.deadlines import Within
from services.proxy.engine_http.upstream import Answer, Leg, LegFailed
from services.proxy.errors import error_response
from services.proxy.metrics import Metrics

logger = logging.getLogger(__name__)

_LAST_WORD_S: Final = 2.0
_FRAMED: Final = frozenset({"Content-Length", "Transfer-Encoding"})
_AT_ONCE: Final = struct.pack("ii", 1, 0)  # struct linger: the end is a reset


class ClientGone(Exception):
    """The client has left, or takes nothing any more."""


class Ending(NamedTuple):
    """How a request ended, and its response. Outcome: one of those that `metrics` lists."""

    response: web.StreamResponse
    outcome: str


class Held(NamedTuple):
    """An answer that says that the engine failed. The client gets it only if no other engine has a better one."""

    status: int
    reason: str | None
    headers: CIMultiDict[str]
    body: bytes


class Reply:
    def __init__(
        self, call: Call, metrics: Metrics, within: Callable[[float], Within], *, slow_client_s: float
    ) -> None:
        self._call = call
        self._request = call.request
        self._metrics = metrics
        self._within = within
        self._slow_client_s = slow_client_s
        self._writer: StreamWriter
        self._response: web.StreamResponse | None = None
        self._events: Events | None = None
        self._outcome = ""

    @property
    def has_begun(self) -> bool:
        """Whether the client was sent something, and can get no other answer."""
        return self._response is not None

    @property
    def ending(self) -> Ending:
        if self._response is None:
            raise RuntimeError("an answer that has not begun cannot end")
        return Ending(self._response, self._outcome)

    async def pass_on(
        self, answer: Answer, first: bytes, leg: Leg, *, outcome: str, limit: Within, limit_s: float
    ) -> None:
        """Passes on the engine's answer to its end. Each piece after the first may take limit_s. Raises LegFailed if
        the answer breaks off, ClientGone."""
        call, story = self._call, self._call.story
        story.first_byte_at = time.monotonic()
        if call.streamed:
            self._metrics.ttft_seconds.observe(story.first_byte_at - story.began)
            self._metrics.added_seconds.observe(story.own_s(story.first_byte_at))
        await self._start(answer.status, answer.reason, answer.headers, outcome)
        chunk = first
        while chunk:
            story.bytes += len(chunk)
            gap = leg.heard()
            if call.streamed and gap:
                self._metrics.gap_seconds.observe(gap)
            if answer.at_end:
                break
            await self._write(chunk)
            limit.restart(limit_s)
            chunk = await answer.read()
        if answer.ends_by_close and not self._is_whole_with(chunk):
            await self._write(chunk)
            raise LegFailed(Outcome.BROKEN, "it closed the connection before the stream's end")
        await self._end(chunk)

    async def pass_held(self, held: Held, outcome: str) -> Ending:
        await self._start(held.status, held.reason, held.headers, outcome)
        await self._end(held.body)
        return self.ending

    async def fail(self, status: int, message: str, *, outcome: str) -> Ending:
        """Before the first byte an error has its status; later, it ends the stream or breaks the connection."""
        request, response, events = self._request, self._response, self._events
        logger.warning("request %s: %s", self._call.story.id, message)
        if response is None:
            return Ending(error_response(request, status, message), outcome)
        form = form_of(request.path)
        reads = not request.protocol.writing_paused  # a client that does not read needs no event
        if reads and form is not None and events is not None and not events.is_torn:
            with contextlib.suppress(TimeoutError, ConnectionError), self._within(_LAST_WORD_S):
                await response.write(error_event(form, status, message, events.last))
                await response.write_eof()
                return Ending(response, outcome)
        self.abort()
        return Ending(response, outcome)

    def abort(self) -> None:
        transport, response = self._request.transport, self._response
        if transport is None:
            return
        if response is not None and _FRAMED.isdisjoint(response.headers):  # a plain end would look like the answer's
            with contextlib.suppress(OSError):  # the client left first
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        transport.abort()

    async def _start(self, status: int, reason: str | None, headers: CIMultiDict[str], outcome: str) -> None:
        response = self._response = PassedOn(status=status, reason=reason, headers=headers)
        response.headers.setdefault("X-Request-Id", self._call.story.id)
        self._outcome = outcome
        if is_stream(headers) and response.content_length is None:
            self._events = Events()
        try:
            self._writer = await response.start(self._request)
        except ConnectionError as error:
            raise ClientGone from error

    async def _write(self, chunk: bytes) -> None:
        """Returns when the client has taken so much that the rest fits into the kernel and a small buffer."""
        if self._events is not None and not (chunk := self._events.feed(chunk)):
            return
        try:
            await self._writer.write(chunk, drain=False)
            if self._request.protocol.writing_paused:
                with self._within(self._slow_client_s):
                    await self._writer.drain()
        except TimeoutError as error:
            taken_s = self._slow_client_s
            logger.warning("request %s: the client took nothing for %g s", self._call.story.id, taken_s)
            raise ClientGone from error
        except ConnectionError as error:
            raise ClientGone from error

    def _is_whole_with(self, last: bytes) -> bool:
        """As far as the events themselves tell."""
        form, events = form_of(self._request.path), self._events
        return form is None or events is None or is_last(form, events.last + events.held + last)

    async def _end(self, last: bytes) -> None:
        """In one packet with the last bytes. A stream that the engine ends within an event is passed on as it is."""
        try:
            with self._within(self._slow_client_s):
                await self.ending.response.write_eof(last if self._events is None else self._events.held + last)
        except (TimeoutError, ConnectionError) as error:
            raise ClientGone from error
