"""One HTTP request over kept-alive connections: aiohttp's pool, request and response, without its session's ways.

What a session adds (redirects, cookies, traces, timers, defaults) is nothing for a proxy, and takes a tenth of its
time. The calls in Wire._send are those that aiohttp's session makes itself; they are aiohttp 3.14's, hence the
bound on its version. What goes wrong comes out as aiohttp's errors. Knows nothing of engines or legs.
"""

import asyncio
import contextvars
import functools
import io
import socket
from typing import Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import TimerNoop
from aiohttp.http import HttpProcessingError
from aiohttp.typedefs import LooseHeaders
from multidict import CIMultiDict
from yarl import URL

_KEEPALIVE_S: Final = 4.0  # below the 5 s after which the engines' servers close an idle connection
_OWN_HEADERS: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # the client's, or none
_PIECE_BYTES: Final = 1 << 20
_NO_TIMER: Final = TimerNoop()


class Connection:
    """What a request went over."""

    __slots__ = ("is_new",)

    def __init__(self) -> None:
        self.is_new = False


_connection: contextvars.ContextVar[Connection] = contextvars.ContextVar("_connection")


class Wire:
    """Make it where an event loop runs."""

    def __init__(self, *, connect_timeout_s: float) -> None:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S, socket_factory=_new_socket)
        self._loop = asyncio.get_running_loop()
        connector._factory = functools.partial(_Protocol, loop=self._loop)  # type: ignore[assignment]
        self._connector = connector
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout_s)

    async def close(self) -> None:
        await self._session.close()

    async def request(
        self, method: str, url: URL, headers: CIMultiDict[str], body: bytes, over: Connection
    ) -> aiohttp.ClientResponse:
        """The response, once its status line and headers are there; close() it. Raises aiohttp.ClientError.

        `over` is told what the request goes over, also where it fails.
        """
        _connection.set(over)
        try:
            return await self._send(method, url, headers, body)
        except aiohttp.ClientError:
            raise
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {url}") from error
        except OSError as error:
            raise aiohttp.ClientOSError(*error.args) from error

    async def _send(self, method: str, url: URL, headers: CIMultiDict[str], body: bytes) -> aiohttp.ClientResponse:
        request = _Request(
            method,
            url,
            headers=headers,
            skip_auto_headers=[name for name in _OWN_HEADERS if name not in headers] or None,  # None is the fast way
            data=_payload(body) if body else None,
            timer=_NO_TIMER,
            loop=self._loop,
            session=self._session,
        )
        connection = await self._connector.connect(request, traces=[], timeout=self._timeout)
        try:
            if (protocol := connection.protocol) is None:
                raise aiohttp.ServerDisconnectedError
            protocol.set_response_params(
                timer=_NO_TIMER, skip_payload=method == "HEAD", read_until_eof=True, auto_decompress=False
            )
            response = await request.send(connection)
            try:
                return await response.start(connection)
            except BaseException:
                response.close()
                raise
        except BaseException:
            connection.close()
            raise


def _payload(body: bytes) -> aiohttp.Payload:
    """Large ones are written piece by piece, so that they do not hold up the others."""
    return aiohttp.BytesPayload(body) if len(body) <= _PIECE_BYTES else aiohttp.BytesIOPayload(io.BytesIO(body))


class _Protocol(ResponseHandler):
    """Tells the body's reader of garbage within a chunked body, too: aiohttp 3 would let it wait for ever."""

    def set_exception(self, exc: BaseException, exc_cause: BaseException = aiohttp.helpers._EXC_SENTINEL) -> None:
        super().set_exception(exc, exc_cause)
        if isinstance(exc, HttpProcessingError) and self._payload is not None:
            self._payload.set_exception(exc)


class _Request(aiohttp.ClientRequest):
    def update_headers(self, headers: LooseHeaders | None) -> None:
        """All at once: aiohttp takes them over one by one."""
        self.headers = CIMultiDict({"Host": self.url.host_port_subcomponent or ""})
        self.headers.extend(headers or ())


def _new_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    _connection.get().is_new = True  # in the task of the request, or in one that it started
    family, kind, protocol, _, _ = address
    return socket.socket(family, kind, protocol)
