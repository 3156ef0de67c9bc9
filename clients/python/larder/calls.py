"""A plain call, carried out by an event loop on another thread. Whatever exception breaks the waiting off, at whatever
moment and however often: the call has ended before the exception leaves.

Python runs signal handlers, which may raise, only where it makes calls or jumps back. So what must not be broken off is
one call of a C function that does not look at signals, reached in a straight line from where the exception was caught.
"""

import asyncio
import atexit
import ctypes
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar, cast

from larder import forks
from larder.errors import InvalidArgument, StoreClosed

logger = logging.getLogger(__name__)
T = TypeVar("T")
CLOSE_S: Final = 5.0

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
        self._under_way: set[Call[Any]] = set()
        self._answer: T | None = None
        self._error: BaseException | None = None
        self._gate: int | None = None
        self._gate = _new_gate()
        _pass_gate(self._gate, 0, _BY_NOTHING)  # shut

    def __del__(self, free: Callable[[int], None] = _free_gate) -> None:
        if self._gate:  # no exception came between
            free(self._gate)

    def result(self, thread: "LoopThread") -> T:
        """Has the thread carry the call out, and waits for its end; raises what it raised."""
        try:
            thread.begin(self)
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

    def begin(self, under_way: "set[Call[Any]]") -> None:
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


class LoopThread:
    """A thread with an event loop, to carry out calls until it is stopped."""

    def __init__(self, loop: asyncio.AbstractEventLoop, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """`close` is the last that it does."""
        forks.cannot_cross(self)
        self._loop = loop
        self._close = close
        self.stopping = self._told = False
        self._last: asyncio.Task[None] | None = None
        self._under_way: set[Call[Any]] = set()
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

    def begin(self, call: Call[Any]) -> None:
        """Raises StoreClosed, or InvalidArgument on this very thread."""
        if threading.current_thread() is self._thread:
            raise InvalidArgument("this thread carries out the store's calls: call from another, not from a callback")
        with self._lock:
            if self.stopping:
                raise StoreClosed("the store is closed")
            self._loop.call_soon_threadsafe(call.begin, self._under_way)

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
