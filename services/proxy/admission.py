"""How many requests are served at once, how many may wait their turn, and how many bytes their bodies may take up."""

import asyncio
from typing import Final

BUFFERED_BYTES_MAX: Final = 1 << 30  # bodies of all requests together


class Overloaded(Exception):
    """There is no room for the request now. str() says what is lacking."""


class Admission:
    def __init__(self, *, running_max: int, waiting_max: int, wait_s: float) -> None:
        self._slots = asyncio.Semaphore(running_max)
        self._running_max, self._waiting_max, self._wait_s = running_max, waiting_max, wait_s
        self.running = 0
        self.waiting = 0
        self._buffered = 0

    def check(self) -> None:
        """Raises Overloaded if enter() would do so at once."""
        if self.waiting >= self._waiting_max and self._slots.locked():
            raise Overloaded(f"{self._running_max} requests are being served and {self.waiting} wait; retry later")

    async def enter(self) -> None:
        """Waits for a turn, first come, first served; leave() must follow. Raises Overloaded if the queue is full or
        too slow."""
        self.check()
        if self._slots.locked():
            await self._wait()
        else:
            await self._slots.acquire()  # at once
        self.running += 1

    def leave(self) -> None:
        self.running -= 1
        self._slots.release()

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._slots.acquire()
        except TimeoutError:
            raise Overloaded(f"the request waited {self._wait_s:g} s for its turn; retry later") from None
        finally:
            self.waiting -= 1

    def buffer(self, size: int) -> None:
        """Counts bytes that are held, or given back (below 0); raises Overloaded if they are too many."""
        if size > 0 and self._buffered + size > BUFFERED_BYTES_MAX:
            raise Overloaded("the requests under way hold too many bytes; retry later")
        self._buffered += size
