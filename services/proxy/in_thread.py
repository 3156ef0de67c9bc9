"""Work that may never come back, such as reading from a file server or a name server that is gone."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class InThread(Generic[T]):
    """Does one thing in a thread of its own, which the process does not wait for at its end. Until it returns, it is
    not started again."""

    def __init__(self, do: Callable[[], T]) -> None:
        self._do = do
        self._doing: Future[T] | None = None

    async def result(self, timeout_s: float | None = None) -> T:
        """Raises what it raises, or TimeoutError. Whoever stops waiting leaves it running."""
        if self._doing is None or self._doing.done():
            self._doing = Future()
            self._doing.set_running_or_notify_cancel()
            threading.Thread(target=self._run, args=(self._doing,), daemon=True).start()
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(self._doing)

    def _run(self, doing: Future[T]) -> None:
        try:
            doing.set_result(self._do())
        except Exception as error:  # for whoever asked
            doing.set_exception(error)
