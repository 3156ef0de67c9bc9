"""The connections over which requests go: made when they are needed, kept for a while when they are not.

Of a name's addresses the first to answer is taken (happy eyeballs). Keeps invariant 12 for its part: an idle
connection is closed after KEEPALIVE_S.
"""

import asyncio
import errno
import socket
import ssl
from pathlib import Path
from typing import Final

import aiohappyeyeballs

from services.proxy.core.endpoint import endpoint_of
from services.proxy.engine_http.connection import Connection
from services.proxy.engine_http.errors import ConnectTimeout, Disconnected, Exhausted, Refused, Unconnected
from services.proxy.engine_http.names import Names
from services.proxy.engine_http.response import Response
from services.proxy.engine_http.tls import Tls

KEEPALIVE_S: Final = 4.0  # below the 5 s after which the engines' servers close an idle connection
_NEXT_ADDRESS_S: Final = 0.25
_KINDS: Final[dict[int, type[Unconnected]]] = {errno.ECONNREFUSED: Refused} | dict.fromkeys(
    (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL), Exhausted
)
_KEEPALIVE: Final = (  # a host that vanished is noticed within 11 s, on this connection alone
    (socket.TCP_KEEPIDLE, 5),
    (socket.TCP_KEEPINTVL, 2),
    (socket.TCP_KEEPCNT, 3),
)


class ConnectionPool:
    """Make it where an event loop runs. Servers are named as `endpoint` reads it; https ones must prove their names by
    the authorities of ca_file, or this system's. Raises OSError if that file cannot be read."""

    def __init__(self, *, connect_timeout_s: float, ca_file: Path | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._connect_timeout_s = connect_timeout_s
        self._tls = Tls(ca_file)
        self._open: set[Connection] = set()
        self._idle: dict[str, dict[Connection, None]] = {}  # the one used last is last
        self._sweeping: asyncio.TimerHandle | None = None
        self._names = Names()

    @property
    def busy(self) -> int:
        """How many connections are in use."""
        return len(self._open) - sum(len(idle) for idle in self._idle.values())

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in tuple(self._open):
            connection.connection_lost(ConnectionAbortedError("the proxy ends"))
        self._names.close()
        await asyncio.sleep(0)  # lets the transports end

    async def request(
        self,
        response: Response,
        to: str,
        head: bytes,
        body: bytes = b"",
        *,
        is_head: bool = False,
        anew: bool = False,
    ) -> None:
        """Sends it; returns when the response's status line and headers are there. Anew: over a new connection. Raises
        HttpError, or what response.fail() was told; ValueError for an impossible host name."""
        connection = self._take(to)
        if anew and connection is not None:  # the new one replaces it, so that there are no more than before
            connection.drop()
            connection = None
        if connection is None:
            connection = await self._connect(response, to)
        connection.send(response, head, body, is_head=is_head)
        await response.head()

    # -- idle ones

    def _take(self, to: str) -> Connection | None:
        while (idle := self._idle.get(to)) is not None:
            connection, _ = idle.popitem()
            if not idle:
                del self._idle[to]
            if connection.is_open and self._loop.time() - connection.idle_since < KEEPALIVE_S:
                return connection
            connection.drop()
        return None

    def _keep(self, connection: Connection) -> None:
        connection.idle_since = self._loop.time()
        self._idle.setdefault(connection.to, {})[connection] = None
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(KEEPALIVE_S, self._sweep)

    def _sweep(self) -> None:
        oldest = self._loop.time() - KEEPALIVE_S
        for connection in [each for idle in self._idle.values() for each in idle if each.idle_since <= oldest]:
            connection.drop()
        self._sweeping = self._loop.call_later(KEEPALIVE_S, self._sweep) if self._idle else None

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if (idle := self._idle.get(connection.to)) is not None:
            idle.pop(connection, None)
            if not idle:
                del self._idle[connection.to]

    # -- new ones

    async def _connect(self, response: Response, to: str) -> Connection:
        response.is_new = True
        try:
            async with asyncio.timeout(self._connect_timeout_s) as response.connecting:
                server = endpoint_of(to)
                found = await self._names.addresses(server.host, server.port)
                taken = await aiohappyeyeballs.start_connection(
                    found, happy_eyeballs_delay=_NEXT_ADDRESS_S, interleave=1, loop=self._loop
                )
                response.is_taken = True
                for option, seconds in _KEEPALIVE:
                    taken.setsockopt(socket.IPPROTO_TCP, option, seconds)
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                _, connection = await self._loop.create_connection(
                    lambda: Connection(to, self._loop, self._keep, self._lost),
                    sock=taken,
                    **self._tls.options(server),
                )
        except (OSError, RuntimeError) as error:  # uvloop's, for a socket it still holds
            response.check()
            error.__traceback__ = None  # aiohappyeyeballs' frames refer to the error
            if response.connecting is not None and response.connecting.expired():
                raise ConnectTimeout(f"no connection to {to} within {self._connect_timeout_s:g} s") from error
            raise _kind_of(error)(f"no connection to {to}: {error}") from error
        finally:
            response.connecting = None
        if not connection.is_open:
            raise Disconnected(f"{to} closed the connection at once")
        self._open.add(connection)
        response.check()
        return connection


def _kind_of(error: OSError | RuntimeError) -> type[Unconnected]:
    if isinstance(error, ssl.SSLError):
        return Refused  # whoever cannot prove its name is not asked
    return _KINDS.get(error.errno or 0, Unconnected) if isinstance(error, OSError) else Unconnected
