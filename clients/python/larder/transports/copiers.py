"""The threads that copy and hash, so that the event loop does not: few, since memory is soon as busy as it can be."""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

from larder.errors import StoreClosed
from larder.tasks import unbroken

T = TypeVar("T")

THREADS: Final = min(2, os.cpu_count() or 1)
INLINE_BYTES: Final = 64 * 1024
"""What is copied on the spot: 10 to 20 us, less than to hand it over."""


class Copiers:
    """A small pool of threads, made when first needed."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="larder-copy")

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Runs `work` on a thread; for callers that are threads themselves."""
        try:
            return self._pool.submit(work)
        except RuntimeError as error:
            raise StoreClosed("the store is closed") from error

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
        self._pool.shutdown(wait=False)
