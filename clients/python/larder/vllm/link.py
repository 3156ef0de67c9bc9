"""One engine process's connection to the store: an event loop on a thread of its own, and whether anyone answers there.

The engine's threads only hand work over and look at futures; nothing here makes them wait. A store that does not answer
is probed in the background until it does, so that a stopped master does not cost every request a time-out (invariant
16); the log hears of it once when it goes and once when it is back.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeVar

from larder import forks
from larder.errors import LarderError, Unavailable
from larder.loops import CLOSE_S, LoopThread

logger = logging.getLogger("vllm.larder")  # below "vllm": the engine's own handlers print it

PROBE_EVERY_S: Final = 0.5
PROBE_S: Final = 2.0
PROBE_KEY: Final = b"larder"
SWITCH_S: Final = 0.0005

Buffers = Sequence[memoryview]
T = TypeVar("T")


class AsyncStore(Protocol):
    """The part of `larder.aio`'s store that the connector uses."""

    async def match(self, keys: Sequence[bytes], wait_s: float = 0.0, hold_s: float = 0.0) -> int: ...

    async def exists(self, keys: Sequence[bytes]) -> list[bool]: ...

    async def put_many(
        self,
        keys: Sequence[bytes],
        buffers: Sequence[Buffers],
        *,
        copies: int,
        depths: Sequence[int],
        started: Callable[[], None],
        wait_s: float,
    ) -> Sequence[Any]: ...

    async def get_many_into(self, keys: Sequence[bytes], buffers: Sequence[Buffers]) -> Sequence[Any]: ...

    async def close(self) -> None: ...


class StoreLink:
    """A store on a loop of its own, and whether it answers.

    It counts as silent until a first probe is answered, and again after a call found it silent: then it is probed
    until it answers, while nobody asks it for anything that a request would wait for.
    """

    def __init__(self, connect: Callable[[], Awaitable[AsyncStore]]) -> None:
        self._connect = connect
        self._store: AsyncStore | None = None
        self._connecting = asyncio.Lock()
        self._up = False
        self._told_down = False
        self._probing: asyncio.Task[None] | None = None
        # A message passes through several threads; each waits so long for the interpreter while the engine runs.
        sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
        self._thread = LoopThread(asyncio.new_event_loop(), self._close)
        self.doubt()

    def ready(self) -> bool:
        """Whether the store answered when it was last asked."""
        return self._up and not forks.inherited()

    def call(self, work: Callable[[AsyncStore], Awaitable[T]]) -> Future[T]:
        """Run `work` on the loop; the future has its result or what it raised. Never waits."""
        try:
            forks.check()
        except forks.Forked as error:
            refused: Future[T] = Future()
            refused.set_exception(error)
            return refused
        return self._thread.submit(self._run(work))

    def soon(self, action: Callable[[], object]) -> None:
        """Run `action` on the loop, where it has not been closed."""
        if not forks.inherited():
            self._thread.soon(action)

    def doubt(self) -> None:
        """The store may be gone: it counts as silent until it has answered a probe."""
        self._up = False
        self.soon(self._start_probing)

    async def _run(self, work: Callable[[AsyncStore], Awaitable[T]]) -> T:
        try:
            return await work(await self._connected())
        except (Unavailable, ConnectionError):
            self.doubt()
            raise

    async def _connected(self) -> AsyncStore:
        async with self._connecting:
            if self._store is None:
                self._store = await self._connect()
            return self._store

    def _start_probing(self) -> None:
        if self._probing is None:
            self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        try:
            while True:
                if await self._answers():
                    break
                await asyncio.sleep(PROBE_EVERY_S)
            if self._told_down:
                logger.warning("Larder answers again")
            self._told_down = False
            self._up = True
        finally:
            self._probing = None

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_S):
                await (await self._connected()).exists([PROBE_KEY])
        except (LarderError, OSError) as error:
            if not self._told_down:
                self._told_down = True
                said = str(error) or type(error).__name__
                logger.warning("Larder does not answer, the engine goes on without it: %s", said)
            return False
        return True

    def close(self) -> None:
        """Close the store and end the thread; calls under way end with an error. Waits at most about CLOSE_S."""
        self._up = False
        if not forks.inherited():
            self._thread.stop(wait_s=CLOSE_S)

    async def _close(self) -> None:
        """Whoever uses the store ends before it does."""
        self._up = False
        current = asyncio.current_task()
        under_way = [task for task in asyncio.all_tasks() if task is not current]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        if self._store is not None:
            await self._store.close()
