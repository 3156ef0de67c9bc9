"""What one request's client gets: an engine's answer, passed on, or the proxy's own word on why there is none.

An answer that breaks off ends in a way that its client notices: a stream of events with an error in its protocol's
form, or, where that is not known or the stream stands within an event, with an aborted connection; so does every other
answer. No part is taken for the whole. Keeps invariant 12 for its part: a client that takes nothing is let go.
"""

import contextlib
import logging
import socket
import struct
from collections.abc import Callable
from typing import Final, cast

from aiohttp import web
from aiohttp.http import StreamWriter
from multidict import CIMultiDict

from services.proxy.connections import PassedOn
from services.proxy.core.events import Events, error_event, form_of, is_last, is_stream
from services.proxy.deadlines import Within
from services.proxy.errors import ID, OUTCOME, error_response

logger = logging.getLogger(__name__)

_LAST_WORD_S: Final = 2.0
_FRAMED: Final = frozenset({"Content-Length", "Transfer-Encoding"})
_AT_ONCE: Final = struct.pack("ii", 1, 0)  # struct linger: the end is a reset


class ClientGone(Exception):
    """The client left, or takes nothing any more."""


class Reply:
    def __init__(self, request: web.Request, within: Callable[[float], Within], slow_client_s: float) -> None:
        self._request = request
        self._within = within
        self._slow_client_s = slow_client_s
        self._writer: StreamWriter
        self._events: Events | None = None
        self.response: web.StreamResponse | None = None  # from begin() on

    async def begin(self, status: int, reason: str | None, headers: CIMultiDict[str], *, outcome: str) -> None:
        request = self._request
        response = self.response = PassedOn(status=status, reason=reason, headers=headers)
        response.headers.setdefault("X-Request-Id", request[ID])
        request[OUTCOME] = outcome
        if is_stream(headers) and response.content_length is None:
            self._events = Events()
        try:
            self._writer = cast(StreamWriter, await response.prepare(request))
        except ConnectionError as error:
            raise ClientGone from error

    async def write(self, chunk: bytes) -> None:
        """Returns when the client has taken so much that the rest may wait in the kernel and a small buffer."""
        if self._events is not None and not (chunk := self._events.feed(chunk)):
            return
        try:
            await self._writer.write(chunk, drain=False)
            if self._request.protocol.writing_paused:
                with self._within(self._slow_client_s):
                    await self._writer.drain()
        except TimeoutError as error:
            taken_s = self._slow_client_s
            logger.warning("request %s: the client took nothing for %g s", self._request[ID], taken_s)
            raise ClientGone from error
        except ConnectionError as error:
            raise ClientGone from error

    def is_whole_with(self, last: bytes) -> bool:
        """As far as the events themselves say so."""
        form, events = form_of(self._request.path), self._events
        return form is None or events is None or is_last(form, events.last + events.held + last)

    async def end(self, last: bytes) -> web.StreamResponse:
        """In one packet with the last bytes. What the engine ends within an event is passed on as that."""
        if self.response is None:
            raise RuntimeError("an answer ends that has not begun")
        try:
            with self._within(self._slow_client_s):
                await self.response.write_eof(last if self._events is None else self._events.held + last)
        except (TimeoutError, ConnectionError) as error:
            raise ClientGone from error
        return self.response

    async def fail(self, status: int, message: str, *, outcome: str) -> web.StreamResponse:
        """An error before the first byte has its status; after it, it ends the stream or breaks the connection."""
        request, response, events = self._request, self.response, self._events
        logger.warning("request %s: %s", request[ID], message)
        request[OUTCOME] = outcome
        if response is None:
            return error_response(request, status, message)
        form = form_of(request.path)
        reads = not request.protocol.writing_paused  # a client that does not read has no need of an event
        if reads and form is not None and events is not None and not events.is_torn:
            with contextlib.suppress(TimeoutError, ConnectionError), self._within(_LAST_WORD_S):
                await response.write(error_event(form, status, message, events.last))
                await response.write_eof()
                return response
        self.abort()
        return response

    def abort(self) -> None:
        transport, response = self._request.transport, self.response
        if transport is None:
            return
        if response is not None and _FRAMED.isdisjoint(response.headers):  # a plain end would look like the answer's
            with contextlib.suppress(OSError):  # the client was faster
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        transport.abort()
