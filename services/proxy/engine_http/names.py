"""The addresses that engines' names stand for.

A name is looked up once for all who wait for it, and remembered for a few seconds. While the resolver fails or hangs,
what it said last is good for a while longer: trouble with names is not the engines'. Each lookup has a thread of its
own: libuv looks up two names at a time, and those of engines that are gone can take ten seconds each, for which all
others would wait.
"""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Final

from aiohappyeyeballs import AddrInfoType

from services.proxy.in_thread import InThread

_FRESH_S: Final = 10.0
_STALE_S: Final = 60.0  # later an address may have become somebody else's
_PATIENCE_S: Final = 0.5  # with a resolver, where an address is known
_TEMPORARY: Final = (socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_SYSTEM)


class Names:
    """Make it where an event loop runs."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, int], _Name] = {}

    async def addresses(self, host: str, port: int) -> Sequence[AddrInfoType]:
        """Raises OSError."""
        with contextlib.suppress(socket.gaierror):
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        name = self._names.get((host, port))
        if name is None:
            self._names = {key: each for key, each in self._names.items() if each.is_of_use}
            name = self._names[host, port] = _Name(host, port)
        return await name.addresses()

    def close(self) -> None:
        for name in self._names.values():
            name.close()


class _Name:
    def __init__(self, host: str, port: int) -> None:
        self._thread = InThread(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        self._loop = asyncio.get_running_loop()
        self._lookup: asyncio.Task[OSError | None] | None = None
        self._found: Sequence[AddrInfoType] = ()
        self._found_at = 0.0

    @property
    def is_of_use(self) -> bool:
        return self._lookup is not None or self._is_younger(_STALE_S)

    async def addresses(self) -> Sequence[AddrInfoType]:
        if self._is_younger(_FRESH_S):
            return self._found
        if self._lookup is None:
            self._lookup = self._loop.create_task(self._look_up())
        lookup, may_be_stale = self._lookup, self._is_younger(_STALE_S)
        done, _ = await asyncio.wait({lookup}, timeout=_PATIENCE_S if may_be_stale else None)
        error = lookup.result() if done else None
        if error is not None and not (may_be_stale and is_temporary(error)):
            raise error.with_traceback(None)
        return self._found

    async def _look_up(self) -> OSError | None:
        try:
            self._found = await self._thread.result()
            self._found_at = self._loop.time()
        except OSError as error:
            return error
        finally:
            self._lookup = None
        return None

    def _is_younger(self, seconds: float) -> bool:
        return bool(self._found) and self._loop.time() - self._found_at < seconds

    def close(self) -> None:
        if self._lookup is not None:
            self._lookup.cancel()


def is_temporary(error: OSError) -> bool:
    """Whether it says nothing of the name: a server did not answer, or not as it should."""
    return not isinstance(error, socket.gaierror) or error.errno in _TEMPORARY
