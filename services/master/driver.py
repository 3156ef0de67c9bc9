"""Carries the core's effects out and brings outcomes back: the only place where the core meets the loop and the clock.

No decision is taken here. Every call waits for one reply; every stream has a bounded queue, and a node that does not
drain it is cut off (invariant 12).
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from services.master.core import messages as m
from services.master.core.master import Master
from services.master.recorder import Recorder

logger = logging.getLogger(__name__)

STREAM_QUEUE_MAX = 10_000  # commands to one node; each covers a whole batch


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Told(NamedTuple):
    """What a node says about itself, for people only."""

    version: str = ""
    host_name: str = ""
    address: str = ""


class Driver:
    """Owns the core. Call its methods on the event loop's thread only."""

    def __init__(self, core: Master, clock_ms: Callable[[], int] = monotonic_ms) -> None:
        self.core = core
        self._clock_ms = clock_ms
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[m.Answer]] = {}
        self._streams: dict[int, asyncio.Queue[m.ToNode]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: int | None = None
        self._recorder = Recorder(core)
        self.broken: asyncio.Future[None] | None = None
        self.told: dict[str, Told] = {}  # by node id
        self.on_note: Callable[[m.Note], None] = lambda note: None

    def tell(self, node_id: str, told: Told) -> None:
        """Remembers what a node says about itself for as long as the core knows that node."""
        self.told = {known: words for known, words in self.told.items() if known in self.core.state.nodes}
        self.told[node_id] = told

    def now_ms(self) -> int:
        """On the core's clock."""
        return self._clock_ms()

    def report(self) -> m.StatusReport:
        """The core at a glance, as of now."""
        return self.core.report(self._clock_ms())

    def rests(self) -> str:
        """Why free space cannot be used yet, for people; empty if it can."""
        return self.core.state.rest.said(self.core.state.now)

    @property
    def has_nodes(self) -> bool:
        """Whether a storage node answers."""
        return any(not node.phase.is_suspect for node in self.core.state.nodes.values())

    async def call(self, command: Callable[[int], m.ClientCommand]) -> m.Answer:
        """The core's answer to the command that `command` makes of this call's number."""
        number = next(self._numbers)
        future: asyncio.Future[m.Answer] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            self.step(command(number))
            return await future
        finally:
            del self._calls[number]

    def open_stream(self) -> tuple[int, asyncio.Queue[m.ToNode]]:
        number = next(self._numbers)
        queue = self._streams[number] = asyncio.Queue(STREAM_QUEUE_MAX)
        return number, queue

    def close_stream(self, number: int) -> None:
        del self._streams[number]
        self.step(m.Broken(number))

    def refuse(self, stream: int, reason: str) -> None:
        """End a node's stream from this side, telling it why."""
        queue = self._streams.get(stream)
        if queue is not None and not queue.full():
            queue.put_nowait(m.Close(stream, self.core.state.epoch, reason))

    async def failure(self) -> None:
        """Never returns; raises what broke the core. A core that contradicts itself must not go on: the nodes hold the
        log, and the next master learns everything from them."""
        self.broken = asyncio.get_running_loop().create_future()
        await self.broken

    def end_streams(self, reason: str) -> None:
        """Tell every node to look for a master elsewhere, or later."""
        for stream in self._streams:
            self.refuse(stream, reason)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def step(self, command: m.Command) -> None:
        now = self._clock_ms()
        try:
            effects = self.core.step(now, command)
        except Exception as error:
            if self.broken is not None and not self.broken.done():
                self.broken.set_exception(error)
                self._recorder.keep(now, command, None)
                self._write(error)
            raise
        self._recorder.keep(now, command, effects)
        for effect in effects:
            if isinstance(effect, m.Reply):
                future = self._calls.get(effect.call)
                if future is not None and not future.done():
                    future.set_result(effect.answer)
                continue
            if isinstance(effect, m.Note):
                logger.log(logging.WARNING if effect.grave else logging.INFO, "%s", effect.text)
                self.on_note(effect)
                continue
            queue = self._streams.get(effect.stream)
            if queue is None:
                continue  # the stream ended during this step; the core hears of it next
            if queue.full():
                logger.error("a node does not take its commands: closing its stream")
                queue.get_nowait()
                effect = m.Close(effect.stream, effect.epoch, "commands were not taken")
            queue.put_nowait(effect)
        self._set_timer()

    def _write(self, error: Exception) -> None:
        try:
            file = self._recorder.write(error)
        except OSError as trouble:
            logger.critical("the core failed, and its last steps could not be written: %s", trouble)
        else:
            logger.critical("the core failed; its last steps are in %s: see larder debug replay", file)

    def _set_timer(self) -> None:
        when = self.core.next_deadline_ms()
        if when == self._timer_at and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, when
        if when is not None:
            delay_ms = max(when - self._clock_ms(), 0)
            self._timer = asyncio.get_running_loop().call_later(delay_ms / 1000, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.step(m.Tick())
