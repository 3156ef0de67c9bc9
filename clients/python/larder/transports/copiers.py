"""The threads that copy and hash, so that the event loop does not: few, since memory is soon as busy as it can be.

Not a ThreadPoolExecutor, which takes no more work once the main thread has ended: other threads may go on, and so do
their stores.
"""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from larder.errors import StoreClosed
from larder.tasks import unbroken

T = TypeVar("T")

THREADS: Final = min(2, os.cpu_count() or 1)
INLINE_BYTES: Final = 64 * 1024
"""What is copied on the spot: that takes 10 to 20 us, less than handing it over."""


class Copiers:
    """A small pool of threads, made when first needed."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = 0
        self._closed = False
        self._lock = threading.RLock()  # a collector may drop a store anywhere

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Runs `work` on a thread; for callers that are threads themselves."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise StoreClosed("the store is closed")
            if self._threads < THREADS:
                threading.Thread(target=_work_off, args=[self._jobs], name="larder-copy", daemon=True).start()
                self._threads += 1
            self._jobs.put((future, work))
        return future

    async def run(self, works: Iterable[Callable[[], T]], *, short: bool = False) -> list[T]:
        """Runs all works in any order; those begun to their end, for they touch the caller's memory.

        short: each takes well under a millisecond. Then the event loop lends a hand between its other duties: a thread
        that is woken begins 0.1 to 0.2 ms late, and two are as often as not put on one core.
        """
        todo = deque(enumerate(works))
        results: dict[int, T] = {}

        def work_off() -> None:
            with suppress(IndexError):
                while True:
                    number, work = todo.popleft()
                    results[number] = work()

        threads = min(THREADS, len(todo)) - short
        jobs: list[asyncio.Future[None]] = []
        try:
            while len(jobs) < threads:
                jobs.append(asyncio.wrap_future(self.submit(work_off)))
            while short and todo:
                number, work = todo.popleft()
                results[number] = work()
                await asyncio.sleep(0)
            await asyncio.shield(asyncio.gather(*jobs))
        except BaseException:
            todo.clear()
            raise
        finally:
            await unbroken(asyncio.gather(*jobs, return_exceptions=True))
        return [results[number] for number in range(len(results))]

    def close(self) -> None:
        """Takes no more work; what was handed in is finished."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in range(self._threads):
                    self._jobs.put(None)


_Job = tuple[Future[Any], Callable[[], Any]]


def _work_off(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        future, work = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
        del job, future, work  # which own the caller's memory
