"""Deadlines of everything under way, watched by one timer: a request has several, and a timer or an asyncio.timeout for
each took a tenth of its time. So whatever is late is noticed up to TICK_S later.
"""

import asyncio
from types import TracebackType
from typing import Any, Final, Protocol, Self, cast

TICK_S: Final = 0.05


class Watched(Protocol):
    deadline: float | None  # by the loop's time; None: it has none for now

    def expire(self) -> None: ...


class Deadlines:
    """Make it where an event loop runs."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watched: set[Watched] = set()
        self._ticking: asyncio.TimerHandle | None = None

    def close(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()

    def watch(self, watched: Watched) -> None:
        """It is told when its deadline has passed, once or more often, until forget()."""
        self._watched.add(watched)
        if self._ticking is None:
            self._ticking = self._loop.call_later(TICK_S, self._tick)

    def forget(self, watched: Watched) -> None:
        self._watched.discard(watched)

    def within(self, seconds: float) -> "Within":
        """As asyncio.timeout() does, but with a plain `with`."""
        return Within(self, self.time() + seconds)

    def time(self) -> float:
        return self._loop.time()

    def _tick(self) -> None:
        now = self._loop.time()
        for watched in [each for each in self._watched if each.deadline is not None and each.deadline <= now]:
            if watched in self._watched:  # still: an earlier one may have ended it
                watched.expire()
        self._ticking = self._loop.call_later(TICK_S, self._tick) if self._watched else None


class Within:
    """Cancels the task, and turns that into a TimeoutError, once the deadline has passed."""

    __slots__ = ("_cancelling", "_deadlines", "_expired", "_task", "deadline")

    def __init__(self, deadlines: Deadlines, deadline: float) -> None:
        self.deadline: float | None = deadline
        self._deadlines = deadlines
        self._expired = False

    def __enter__(self) -> Self:
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancelling = self._task.cancelling()
        self._deadlines.watch(self)
        return self

    def restart(self, seconds: float) -> None:
        """So many seconds are left from now on, unless it has expired."""
        if not self._expired:
            self.deadline = self._deadlines.time() + seconds

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadlines.forget(self)
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        self.deadline = None
        self._expired = True
        self._task.cancel()
