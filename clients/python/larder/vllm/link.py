"""One engine process's connection to the store: an event loop on a thread of its own, and whether anyone answers there.

The engine's threads only hand work over and look at futures; nothing here makes them wait. A store that does not answer
is left alone for a second, so that a stopped master does not cost every request a time-out (invariant 16), and the log
hears of it once when it goes and once when it is back.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeVar

from larder.errors import LarderError, StoreClosed, Unavailable

logger = logging.getLogger("vllm.larder")  # below "vllm": the engine's own handlers print it

BACK_OFF_S: Final = 1.0
CONNECT_S: Final = 2.0
CLOSE_S: Final = 5.0

Buffers = Sequence[memoryview]
T = TypeVar("T")


class AsyncStore(Protocol):
    """The part of `larder.aio`'s store that the connector uses."""

    async def match(self, keys: Sequence[bytes], wait_s: float = 0.0) -> int: ...

    async def exists(self, keys: Sequence[bytes]) -> list[bool]: ...

    async def put_many(
        self,
        keys: Sequence[bytes],
        buffers: Sequence[Buffers],
        *,
        copies: int,
        depths: Sequence[int],
        started: Callable[[], None],
    ) -> Sequence[Any]: ...

    async def get_many_into(self, keys: Sequence[bytes], buffers: Sequence[Buffers]) -> Sequence[Any]: ...

    async def close(self) -> None: ...


class StoreLink:
    """A store that is connected when first asked, and its state: up, or left alone until a moment."""

    def __init__(
        self, connect: Callable[[], Awaitable[AsyncStore]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._store: AsyncStore | None = None
        self._connecting = asyncio.Lock()
        self._up = True
        self._retry_at = 0.0
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="larder", daemon=True)
        self._thread.start()

    @property
    def up(self) -> bool:
        """Whether the store answered when it was last asked (or was never asked)."""
        return self._up

    def ready(self) -> bool:
        """Whether to ask at all: not while a store that did not answer is left alone."""
        return not self._closed and (self._up or self._clock() >= self._retry_at)

    def open(self) -> None:
        """Connect in the background, so that the first call need not."""
        self.call(_nothing)

    def call(self, work: Callable[[AsyncStore], Awaitable[T]]) -> Future[T]:
        """Run `work` on the loop; the future has its result or what it raised. Never waits."""
        if self._closed:
            refused: Future[T] = Future()
            refused.set_exception(StoreClosed("the connector was shut down"))
            return refused
        return asyncio.run_coroutine_threadsafe(self._run(work), self._loop)

    async def _run(self, work: Callable[[AsyncStore], Awaitable[T]]) -> T:
        try:
            result = await work(await self._connected())
        except (Unavailable, ConnectionError) as error:
            self._lost(error)
            raise
        self._found()
        return result

    async def _connected(self) -> AsyncStore:
        async with self._connecting:
            if self._store is None:
                try:
                    async with asyncio.timeout(CONNECT_S):
                        self._store = await self._connect()
                except (LarderError, OSError) as error:
                    raise Unavailable(f"cannot connect: {str(error) or type(error).__name__}") from error
            return self._store

    def _lost(self, error: Exception) -> None:
        self._retry_at = self._clock() + BACK_OFF_S
        if self._up:
            self._up = False
            logger.warning("Larder does not answer, the engine goes on without it: %s", error)

    def _found(self) -> None:
        if not self._up:
            self._up = True
            logger.warning("Larder answers again")

    def close(self) -> None:
        """Close the store and end the thread; calls under way end with an error. Waits at most about CLOSE_S."""
        if self._closed:
            return
        self._closed = True
        future = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        try:
            future.result(CLOSE_S)
        except (TimeoutError, LarderError, OSError) as error:
            logger.warning("Larder's store did not close in order: %r", error)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _close(self) -> None:
        if self._store is not None:
            await self._store.close()
        current = asyncio.current_task()
        left = [task for task in asyncio.all_tasks() if task is not current]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _nothing(store: AsyncStore) -> None:
    """Only connects."""
