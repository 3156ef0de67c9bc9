"""Work nobody waits for: reports of bad copies, leases given back, and aborts of puts that were given up.

Bounded, and owned by the store.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from larder.errors import LarderError
from larder.keys import BATCH_KEYS_MAX
from larder.rpc import BadCopy, MasterClient, Started
from larder.stats import Stats

logger = logging.getLogger(__name__)

REPORTS_MAX: Final = 4096
RELEASES_MAX: Final = 4096
RELEASE_EVERY_S: Final = 0.02
TASKS_MAX: Final = 64
CALL_S: Final = 2.0


class Background:
    """The store's own tasks."""

    def __init__(self, master: MasterClient, stats: Stats) -> None:
        self._master = master
        self._stats = stats
        self._reports: deque[BadCopy] = deque(maxlen=REPORTS_MAX)
        self._reporting = False
        self._releases: deque[int] = deque(maxlen=RELEASES_MAX)  # leases that fall out end by themselves
        self._releasing = False
        self._tasks: set[asyncio.Task[None]] = set()

    def report(self, bad: BadCopy) -> None:
        """Tells the master of a bad copy, soon."""
        self._reports.append(bad)
        if not self._reporting:
            self._reporting = self._start(self._report())

    def release(self, lease: int) -> None:
        """Tells the master soon that a read has ended: its objects may then be evicted."""
        if lease:
            self._releases.append(lease)
            if not self._releasing:
                self._releasing = self._start(self._release())

    def abort(self, write_ids: Sequence[int]) -> None:
        """Gives up writes. If that fails, they expire by themselves."""
        for start in range(0, len(write_ids), BATCH_KEYS_MAX):
            self._start(self._abort(write_ids[start : start + BATCH_KEYS_MAX]))

    def abort_started(self, starting: asyncio.Future[Started]) -> None:
        """Gives up the writes of a put that was cancelled before it knew their ids."""
        if not self._start(self._abort_started(starting)):
            starting.cancel()

    async def close(self) -> None:
        """Gives tasks under way a moment, then cancels them."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=0.2)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> bool:
        if len(self._tasks) >= TASKS_MAX:
            self._stats.add("background_dropped")
            work.close()
            return False
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _report(self) -> None:
        try:
            while self._reports:
                await asyncio.sleep(0)  # all failures of one turn of the loop go into one call
                bad = [self._reports.popleft() for _ in range(len(self._reports))]
                await self._master.report(bad, deadline=time.monotonic() + CALL_S)
        except LarderError as error:
            self._stats.add("background_failures")
            logger.warning("bad copies could not be reported: %s", error)
        finally:
            self._reporting = False

    async def _release(self) -> None:
        try:
            while self._releases:
                await asyncio.sleep(RELEASE_EVERY_S)  # one call for all leases that end meanwhile
                leases = [self._releases.popleft() for _ in range(len(self._releases))]
                await self._master.release(leases, deadline=time.monotonic() + CALL_S)
        except LarderError as error:
            self._stats.add("background_failures")
            logger.info("leases could not be given back, they end by themselves: %s", error)
        finally:
            self._releasing = False

    async def _abort_started(self, starting: asyncio.Future[Started]) -> None:
        try:
            async with asyncio.timeout(CALL_S):
                started = await starting
        except (LarderError, TimeoutError):
            return
        if write_ids := [write_id for write_id in started.write_ids if write_id]:
            await self._abort(write_ids)

    async def _abort(self, write_ids: Sequence[int]) -> None:
        try:
            await self._master.put_abort(write_ids, deadline=time.monotonic() + CALL_S)
        except LarderError as error:
            self._stats.add("background_failures")
            logger.info("%d writes could not be aborted, they expire by themselves: %s", len(write_ids), error)
