"""aiohttp's server where the proxy has to reach inside: no other module uses what aiohttp keeps to itself.

Every such use is held against the installed release by a test, and the release bounded in pyproject.toml: a class of
aiohttp's that is changed by inheritance may change under it. What clients may do is decided in `client_limits`.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http import StreamWriter as StreamWriter

_LONE: Final = re.compile("[\udc80-\udcff]")  # surrogates: bytes that are not UTF-8


class Runner(web.AppRunner):
    """An AppRunner with a Server of the proxy's own. A slash at the end of a path says nothing here: engines would
    redirect to themselves."""

    def __init__(self, app: web.Application, make_server: "Callable[..., Server]", **options: Any) -> None:
        super().__init__(app, **options)
        self.make_server = make_server

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        factory = partial(_request, made.request_factory)
        return self.make_server(made.request_handler, request_factory=factory, **self._kwargs)


def _request(make: Callable[..., web.BaseRequest], message: RawRequestMessage, *args: Any) -> web.BaseRequest:
    path = message.url.raw_path
    if path.endswith("/") and path != "/":
        url = message.url.with_path(path.rstrip("/") or "/", encoded=True, keep_query=True)
        message = message._replace(url=url)
    return make(message, *args)


class Server(web.Server):
    """A web.Server whose connections are of `connection_type`."""

    connection_type: "type[Connection]"

    def __call__(self) -> web.RequestHandler:
        return self.connection_type(self, loop=self._loop, **self._kwargs)


class Connection(web.RequestHandler):
    """A client's. At the proxy's end it closes as soon as nothing is under way on it."""

    __slots__ = ("is_ending",)

    def __init__(self, manager: Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self.is_ending = False

    @property
    def server(self) -> Server:
        return cast(Server, self._manager)

    @property
    def is_deaf(self) -> bool:
        """Whatever still comes is thrown away."""
        return self._close

    @property
    def awaits_request(self) -> bool:
        """No request is under way: the head of the next one is not whole yet."""
        return self._waiter is not None and not self._waiter.done()

    def turn_deaf(self) -> None:
        self._close = True

    def stop(self) -> None:
        """Serves no more requests. What was written still leaves; the transport stays open."""
        super().close()

    def close(self) -> None:
        """Asks for the connection's end. Of itself, aiohttp would leave an idle one open to the last, and unread what
        comes over it, and over another one the rest of a request's body."""
        if self._request_in_progress:
            self.is_ending = True
            return
        is_idle = self.awaits_request
        super().close()
        if is_idle and self.transport is not None:
            self.transport.close()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """aiohttp asks for it with every body that was read, and would parse and poll anew where nothing is held up."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if self.is_ending:
            resp.force_close()
        return await super().finish_response(request, resp, start_time)


class PassedOn(web.StreamResponse):
    """An engine's answer. Its head goes out with its first bytes, which are always there by then: one packet less, and
    one system call. Header values keep bytes that are not UTF-8, which aiohttp would leave out."""

    _send_headers_immediately = False

    async def start(self, request: web.Request) -> StreamWriter:
        return cast(StreamWriter, await self.prepare(request))

    async def _write_headers(self) -> None:
        await super()._write_headers()
        text = "".join(self._headers.values()) + self._reason
        if not text.isascii() and _LONE.search(text):
            lines = "".join([f"{name}: {value}\r\n" for name, value in self._headers.items()])
            version = cast(web.BaseRequest, self._req).version
            head = f"HTTP/{version.major}.{version.minor} {self._status} {self._reason}\r\n{lines}\r\n"
            cast(StreamWriter, self._payload_writer)._headers_buf = head.encode(errors="surrogateescape")
