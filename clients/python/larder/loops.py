"""An event loop on a thread of its own: how plain calls and an engine's threads use what is written for asyncio.

The only place that starts such a thread. It ends when it is stopped, at the latest with the interpreter; a process that
was forked from one that has any may not use it (`larder.forks`).
"""

import asyncio
import atexit
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

from larder import forks
from larder.errors import InvalidArgument, StoreClosed

logger = logging.getLogger(__name__)
T = TypeVar("T")
CLOSE_S: Final = 5.0


class Work(Protocol):
    """A call that somebody waits for (`larder.calls`)."""

    given_up: bool

    def begin(self, under_way: set[Any]) -> None:
        """On the loop; `under_way` has it until it has ended."""

    def cancel(self) -> None:
        """On the loop."""


class LoopThread:
    """A thread with an event loop, to carry out calls until it is stopped."""

    def __init__(self, loop: asyncio.AbstractEventLoop, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """`close` is the last that it does."""
        forks.cannot_cross(self)
        self._loop = loop
        self._close = close
        self.stopping = self._told = False
        self._last: asyncio.Task[None] | None = None
        self._under_way: set[Work] = set()
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self.ring = self._ringer.send
        """Has the calls that were given up cancelled; a call of C, which nothing breaks off."""
        self._lock = threading.RLock()  # a signal handler may make calls in the middle of one
        self._thread = threading.Thread(target=self._run, name="larder", daemon=True)
        _running.add(self)
        try:
            self._thread.start()
        except RuntimeError:  # too many threads
            self._shut()
            raise
        except BaseException:  # a signal handler's: it may run by now, or not
            _running.discard(self)
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise

    def carry_out(self, call: Work) -> None:
        """Raises StoreClosed, or InvalidArgument on this very thread."""
        if threading.current_thread() is self._thread:
            raise InvalidArgument("this thread carries out the store's calls: call from another, not from a callback")
        with self._lock:
            if self.stopping:
                raise StoreClosed("the store is closed")
            self._loop.call_soon_threadsafe(call.begin, self._under_way)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Has the loop carry it out, without waiting. The future has what came of it; StoreClosed after a stop."""
        with self._lock:
            if not self.stopping:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        refused: Future[T] = Future()
        refused.set_exception(StoreClosed("the store is closed"))
        return refused

    def soon(self, action: Callable[[], object]) -> None:
        """Runs it on the loop, unless that was stopped."""
        with self._lock:
            if not self.stopping:
                self._loop.call_soon_threadsafe(action)

    def _heed_the_bell(self) -> None:
        with suppress(BlockingIOError):
            self._bell.recv(4096)
        for call in list(self._under_way):
            if call.given_up:
                call.cancel()

    def stop(self, wait_s: float = 0.0) -> None:
        """Ends the calls under way and closes; waits so long for it. Broken off, it may be called again."""
        with self._lock:
            self.stopping = True
            if not self._told:
                with suppress(RuntimeError):  # it was told, and is closed
                    self._loop.call_soon_threadsafe(self._begin_stopping)
                self._told = True
        if wait_s and threading.current_thread() is not self._thread:
            self._thread.join(wait_s)

    def _begin_stopping(self) -> None:
        if self._last is None:
            self._last = self._loop.create_task(self._end())

    async def _end(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._close()
        except Exception:
            logger.exception("a store did not close in order")
        current = asyncio.current_task()
        calls = [task for task in asyncio.all_tasks() if task is not current]
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        self._loop.stop()

    def _run(self) -> None:
        try:
            self._loop.add_reader(self._bell, self._heed_the_bell)
            self._loop.run_forever()
        finally:
            self._loop.remove_reader(self._bell)
            self._shut()

    def _shut(self) -> None:
        self._loop.close()
        self._bell.close()
        self._ringer.close()
        _running.discard(self)


_running: Final[set[LoopThread]] = set()


@atexit.register
def _stop_all() -> None:
    """Threads that are in the engine when the interpreter goes would take the process down with them."""
    if not forks.inherited():
        for thread in list(_running):
            thread.stop(wait_s=CLOSE_S)
