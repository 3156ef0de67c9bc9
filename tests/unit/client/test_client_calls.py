"""Plain calls: an exception that breaks the waiting off leaves only when the call has ended, whenever it comes.

Signals are sent by a thread, and raise only inside Call.result, so that none of them hits the test itself.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from larder import loops
from larder.calls import Call
from larder.errors import StoreClosed
from larder.loops import LoopThread
from larder.tasks import together, unbroken

RESULT = Call.result.__code__


class Interrupt(Exception):
    """What a signal handler of the caller's raises."""


async def nothing() -> None:
    pass


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread(asyncio.new_event_loop(), nothing)
    yield thread
    thread.stop(wait_s=5)


class Work:
    """Takes its time to end when it is cancelled, as a transfer does that is in the air."""

    def __init__(self, seconds: float = 0.01, ending_s: float = 0.0) -> None:
        self.seconds = seconds
        self.ending_s = ending_s
        self.under_way = False
        self.done = False

    async def __call__(self) -> str:
        self.under_way = True
        try:
            await asyncio.sleep(self.seconds)
            self.done = True
            return "done"
        finally:
            try:
                await unbroken(asyncio.sleep(self.ending_s))
            finally:
                self.under_way = False


@contextmanager
def signals(work: Work, first_s: float, every_s: float) -> Iterator[list[int]]:
    """One signal after the other from then on that the work is under way; answers how many of them raised."""
    raised: list[int] = []
    over = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code is RESULT:
                raised.append(number)
                raise Interrupt
            frame = frame.f_back

    def send() -> None:
        until(lambda: work.under_way)
        over.wait(first_s)
        while not over.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
            over.wait(every_s)

    before = signal.signal(signal.SIGUSR1, handle)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield raised
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("ending_s", [0.0, 0.1])
@pytest.mark.parametrize("every_s", [60.0, 0.001, 0.00002])
def test_a_call_has_ended_when_a_signal_handlers_exception_leaves_it(
    thread: LoopThread, every_s: float, ending_s: float
) -> None:
    for first_s in (0.0, 0.0005, 0.01):
        work = Work(60.0, ending_s)
        with signals(work, first_s, every_s) as raised, pytest.raises(Interrupt):
            Call(work).result(thread)
        assert raised
        assert not work.under_way
        assert not work.done
        assert Call(Work()).result(thread) == "done"


def test_a_call_has_ended_wherever_the_waiting_is_broken_off(thread: LoopThread) -> None:
    """At each single instruction before the wait and after it, by turns."""
    for chosen in range(1000):
        seen = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal seen
            if frame.f_code is not RESULT:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                seen += 1
                if seen == chosen + 1:  # noqa: B023  (used up within this turn)
                    raise Interrupt
            return trace

        work = Work()
        call = Call(work)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            answer = call.result(thread)
        except Interrupt:
            answer = None
        finally:
            sys.settrace(before)
        assert not work.under_way
        flush(thread)
        assert not work.under_way
        if answer is not None and seen <= chosen:
            assert chosen > 20
            return
    pytest.fail("the instructions have no end")


def flush(thread: LoopThread) -> None:
    """What was handed to the loop before has begun by now."""
    Call(nothing).result(thread)


def test_what_a_call_raises_is_raised_and_does_not_hold_its_frames(thread: LoopThread) -> None:
    async def fail() -> None:
        raise KeyError("no")

    with pytest.raises(KeyError, match="no"):
        Call(fail).result(thread)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_whatever_a_call_raises_the_thread_goes_on(thread: LoopThread, error: type[BaseException]) -> None:
    async def fail() -> None:
        raise error

    with pytest.raises(error):
        Call(fail).result(thread)
    assert Call(Work()).result(thread) == "done"


def test_a_thread_that_stops_ends_the_calls_under_way_and_takes_no_more(thread: LoopThread) -> None:
    work = Work(60.0, ending_s=0.1)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            Call(work).result(thread)
        except BaseException as error:
            errors.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    until(lambda: work.under_way)
    thread.stop(wait_s=5)
    caller.join(5)
    assert [type(error) for error in errors] == [asyncio.CancelledError]
    assert not work.under_way
    with pytest.raises(StoreClosed):
        Call(nothing).result(thread)


async def test_works_done_together_have_all_ended_when_one_fails() -> None:
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            await unbroken(asyncio.sleep(0.05))
            ended.append("slow")

    async def fail() -> None:
        raise ValueError("no")

    works: list[Callable[[], Coroutine[Any, Any, None]]] = [slow, fail, slow]
    with pytest.raises(ValueError, match="no"):
        await together([work() for work in works])
    assert ended == ["slow", "slow"]


def test_a_thread_whose_start_is_broken_off_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    start, begun = threading.Thread.start, []

    def broken_off(thread: threading.Thread) -> None:
        start(thread)
        begun.append(thread)
        raise Interrupt

    before = set(loops._running)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", broken_off)
        with pytest.raises(Interrupt):
            LoopThread(asyncio.new_event_loop(), nothing)
    begun[0].join(5)
    assert not begun[0].is_alive()
    assert loops._running == before


@pytest.mark.parametrize("after", [True, False])
def test_a_stop_that_is_broken_off_can_be_made_up_for(after: bool) -> None:
    class Loop(asyncio.SelectorEventLoop):
        breaks = True

        def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:
            if self.breaks and not after:
                raise Interrupt
            super().call_soon_threadsafe(*args, **kwargs)
            if self.breaks:
                raise Interrupt

    loop = Loop()
    thread = LoopThread(loop, nothing)
    with pytest.raises(Interrupt):
        thread.stop()
    loop.breaks = False
    thread.stop(wait_s=5)
    assert loop.is_closed()
    thread.stop(wait_s=5)
    with pytest.raises(StoreClosed):
        Call(nothing).result(thread)


def test_where_there_are_too_many_threads_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before, loop = set(loops._running), asyncio.new_event_loop()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            LoopThread(loop, nothing)
    assert loop.is_closed()
    assert loops._running == before


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.002)
