"""An asyncio event loop on virtual time, with processes: the seed decides which of them goes next.

Handles belong to the process whose context they were made in. Within a process they run first come first served, as
asyncio promises; between processes the seed decides. A paused process (SIGSTOP) keeps its handles, a killed one loses
them. Time passes only when nobody who may run has anything to do. Nothing here waits, and nothing depends on addresses
of objects (invariant 13).
"""

import asyncio
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

HANDLES_MAX = 400_000  # of one run: more is an endless loop


class Violation(AssertionError):
    """A promise was broken; the message says which."""


class Process:
    """What is killed, paused and partitioned as one. `part` is what runs in it."""

    def __init__(self, name: str, host: str, clock_offset_s: float = 0.0) -> None:
        self.name = name
        self.host = host
        self.clock_offset_s = clock_offset_s
        self.queue: deque[asyncio.Handle] = deque()
        self.alive = True
        self.paused = False
        self.part: Any = None
        self.context = contextvars.Context()
        self.context.run(PROCESS.set, self)


PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")


class SimTask(asyncio.Task[Any]):
    """Hashed by number: sets of tasks are walked in the same order in every run."""

    def __init__(self, coro: Coroutine[Any, Any, Any], loop: "SimLoop", context: contextvars.Context | None) -> None:
        self._number = len(loop.tasks)
        loop.tasks.append(self)
        super().__init__(coro, loop=loop, name="sim", context=context)

    def __hash__(self) -> int:
        return self._number


class SimLoop(asyncio.BaseEventLoop):
    """Runs until a moment of its own clock, which starts at 0."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng
        self.tasks: list[SimTask] = []
        self.failure: BaseException | None = None
        self._world = Process("world", "")
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = 0
        self._runnable: list[Process] = []

    # ---- what asyncio asks of a loop -------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(handle)
        return handle

    call_soon_threadsafe = call_soon  # there are no threads

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, handle))
        return handle

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> SimTask:
        return SimTask(coro, self, context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.fail(context.get("exception") or Violation(context["message"]))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer is dropped when its time comes."""

    # ---- processes -------------------------------------------------------------------------------

    def pause(self, process: Process) -> None:
        process.paused = True
        if process in self._runnable:
            self._runnable.remove(process)

    def resume(self, process: Process) -> None:
        process.paused = False
        if process.alive and process.queue and process not in self._runnable:
            self._runnable.append(process)

    def kill(self, process: Process) -> None:
        process.alive = False
        process.queue.clear()
        if process in self._runnable:
            self._runnable.remove(process)

    def _enqueue(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(PROCESS) or self._world  # type: ignore[attr-defined]
        if not process.alive:
            return
        if not process.queue and not process.paused:
            self._runnable.append(process)
        process.queue.append(handle)

    # ---- running ---------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """End the run; the first error counts."""
        if self.failure is None:
            self.failure = error

    def run_until(self, when: float) -> None:
        """Run all that is due until `when`; raises what broke."""
        draw, runnable, timers = self.rng.random, self._runnable, self._timers
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        left = HANDLES_MAX
        try:
            while self.failure is None:
                if runnable:
                    chosen = int(draw() * len(runnable)) if len(runnable) > 1 else 0
                    process = runnable[chosen]
                    handle = process.queue.popleft()
                    if not process.queue:
                        del runnable[chosen]
                    if not handle._cancelled:  # type: ignore[attr-defined]
                        handle._run()
                        left -= 1
                        if not left:
                            raise Violation(
                                f"more than {HANDLES_MAX} handles up to {when:.3f} s: a loop without an end"
                            )
                    continue
                if not timers or timers[0][0] > when:
                    break
                due, _, timer = heapq.heappop(timers)
                self._now = max(self._now, due)
                if not timer._cancelled:  # type: ignore[attr-defined]
                    self._enqueue(timer)
            self._now = max(self._now, when)
        finally:
            asyncio._set_running_loop(outer)
        if self.failure is not None:
            raise self.failure

    def end(self) -> list[BaseException]:
        """Let go of everything. Returns errors of tasks that nobody looked at."""
        for process in {id(process): process for process in self._runnable}.values():
            self.kill(process)
        self._enqueue = _ignore  # type: ignore[method-assign]
        unseen = []
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)  # what a coroutine starts while it is closed is closed too
        for task in self.tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with suppress(BaseException):
                    task.get_coro().close()  # type: ignore[union-attr]
            elif task._log_traceback:  # type: ignore[attr-defined]
                unseen.append(task.exception() or Violation("a task's error is gone"))
        asyncio._set_running_loop(outer)
        self.tasks.clear()
        self._timers.clear()
        self.close()
        return unseen


def _ignore(handle: asyncio.Handle) -> None:
    """A loop that has ended runs nothing."""


def in_process(process: Process, loop: SimLoop, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Start `work` as a task of the process; an error ends the run."""

    async def guarded() -> None:
        try:
            await work()
        except Exception as error:
            loop.fail(error)

    loop.call_soon(lambda: loop.create_task(guarded()), context=process.context)
