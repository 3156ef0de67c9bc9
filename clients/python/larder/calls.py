"""A plain call, carried out by an event loop on another thread. Whatever exception breaks the waiting off, at whatever
moment and however often: the call has ended before the exception leaves.

Python runs signal handlers, which may raise, only where it makes calls or jumps back. So what must not be broken off is
one call of a C function that does not look at signals, reached in a straight line from where the exception was caught.
"""

import asyncio
import ctypes
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar, cast

from larder.loops import LoopThread

T = TypeVar("T")

_FOR_EVER: Final = -1
_BY_SIGNALS, _BY_NOTHING = 1, 0
_BROKEN_OFF: Final = 2
_python = ctypes.CDLL(None)  # unlike ctypes.pythonapi it lets other threads run meanwhile
_new_gate, _free_gate = _python.PyThread_allocate_lock, _python.PyThread_free_lock
_pass_gate, _open_gate = _python.PyThread_acquire_lock_timed, ctypes.pythonapi.PyThread_release_lock
_new_gate.restype, _new_gate.argtypes = ctypes.c_void_p, []
_free_gate.restype, _free_gate.argtypes = None, [ctypes.c_void_p]
_open_gate.restype, _open_gate.argtypes = None, [ctypes.c_void_p]
_pass_gate.restype, _pass_gate.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int]


class Call(Generic[T]):
    """One call. Once it has ended nothing of it touches the caller's memory, or keeps that alive."""

    __slots__ = ("_answer", "_begun", "_ended", "_error", "_gate", "_task", "_under_way", "_work", "given_up")

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work: Callable[[], Coroutine[Any, Any, T]] | None = work
        self._task: asyncio.Task[None] | None = None
        self._begun = self._ended = self.given_up = False
        self._under_way: set[Any] = set()
        self._answer: T | None = None
        self._error: BaseException | None = None
        self._gate: int | None = None
        self._gate = _new_gate()
        _pass_gate(self._gate, 0, _BY_NOTHING)  # shut

    def __del__(self, free: Callable[[int], None] = _free_gate) -> None:
        if self._gate:  # no exception came between
            free(self._gate)

    def result(self, thread: LoopThread) -> T:
        """Has the thread carry the call out, and waits for its end; raises what it raised."""
        try:
            thread.carry_out(self)
            while _pass_gate(self._gate, _FOR_EVER, _BY_SIGNALS) == _BROKEN_OFF:
                pass
        except BaseException:
            # In a straight line to the wait. What has not begun by now never will: begin() looks.
            self.given_up = True
            try:
                if self._begun and not self._ended:
                    try:
                        thread.ring(b"!")
                    except OSError:
                        pass  # it rings already
                    finally:
                        _pass_gate(self._gate, _FOR_EVER, _BY_NOTHING)
            finally:
                self._answer = self._error = None
            raise
        if self._error is None:
            answer, self._answer = self._answer, None
            return cast(T, answer)
        error, self._error = self._error, None
        try:
            raise error
        finally:
            del error  # whose traceback holds this frame

    # ---- on the loop -----------------------------------------------------------------------------

    def begin(self, under_way: set[Any]) -> None:
        """`under_way` has the call until it has ended."""
        self._begun = True
        if self.given_up:
            self._end()
            return
        self._under_way = under_way
        under_way.add(self)
        self._task = asyncio.get_running_loop().create_task(self._carry_out())
        self._task.add_done_callback(self._done)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _carry_out(self) -> None:
        try:
            if self._work is not None:
                self._answer = await self._work()
        except BaseException as error:
            self._error = error

    def _done(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # before it began
            self._error = asyncio.CancelledError()
        self._end()

    def _end(self) -> None:
        self._task = self._work = None
        self._under_way.discard(self)
        self._ended = True
        _open_gate(self._gate)
