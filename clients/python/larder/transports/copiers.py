"""The threads that copy and hash, so that the event loop does not: few, since memory is soon as busy as it can be."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from larder.errors import StoreClosed

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

    async def run(self, works: Iterable[Callable[[], T]]) -> list[T]:
        """Runs all works on the threads, to their end: also a cancelled caller waits, for they touch its memory."""
        jobs: list[asyncio.Future[T]] = []
        try:
            for work in works:
                jobs.append(asyncio.wrap_future(self.submit(work)))  # noqa: PERF401  (those begun are waited for)
        finally:
            results = await unbroken(asyncio.gather(*jobs))
        return results

    def close(self) -> None:
        """Takes no more work; what was handed in is finished."""
        self._pool.shutdown(wait=False)


async def unbroken(work: Awaitable[T]) -> T:
    """Awaits `work` to its end even when cancelled meanwhile, and only then gives way to the cancellation."""
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue  # the first one is raised below
        if not future.cancelled():
            future.exception()  # it was looked at
        raise
