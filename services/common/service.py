"""The life of a service process: event loop, logs, signals, exit status. What the service does is its main coroutine.

SIGTERM and SIGINT set the event that main waits for; main then drains and returns, and the process exits with 0.
A LarderError or OSError from main (a port taken, a pool that does not fit) becomes one clear line and exit status 1.
"""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TextIO

import uvloop
from larder.errors import LarderError

from services.common import logs
from services.common.captured import Captured

logger = logging.getLogger(__name__)


def run(
    main: Callable[[asyncio.Event], Coroutine[Any, Any, None]],
    *,
    prog: str,
    log_level: str,
    log_format: logs.Format = "text",
    capture: bool = False,
) -> int:
    """Runs main(stop) to its end on uvloop; returns the process's exit status.

    `capture`: what libraries write to stderr becomes part of the log; only for processes that start no others.
    """
    captured = Captured() if capture else None
    stream = captured.stream if captured else sys.stderr
    logs.begin(prog=prog, level=log_level, format=log_format, stream=stream)
    try:
        return _run(main, prog, stream)
    finally:
        if captured is not None:
            captured.close()


def _run(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]], prog: str, stream: TextIO) -> int:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_with_signals(main))
    except Exception as error:
        cause = _only_leaf(error)
        if isinstance(cause, (LarderError, OSError)):
            print(logs.line(f"{prog}: {cause}", logging.CRITICAL), file=stream, flush=True)
        else:
            logger.critical("unexpected end: %r", cause, exc_info=error)
        return 1
    return 0


def collect_rarely() -> None:
    """For a process with millions of small live objects and hardly any cycles: a full collection would stop its loop
    for seconds. Call it before creating them."""
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000_000)


def announce(line: str) -> None:
    """Prints the line that says that the service is ready, and where: to stdout, in the log's format."""
    print(logs.line(line), flush=True)


async def _with_signals(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await main(stop)


def _only_leaf(error: BaseException) -> BaseException:
    """The one exception in a (nested) group of one, as a TaskGroup wraps it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
