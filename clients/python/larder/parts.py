"""What a store is made of once it is used, on one event loop, and how that ends."""

import asyncio
from contextlib import suppress

from larder import forks
from larder.background import Background
from larder.gets import Getter
from larder.mover import Mover
from larder.options import Options
from larder.puts import Putter
from larder.rpc import MasterClient
from larder.stats import Stats


class Parts:
    """Belongs to the running loop."""

    def __init__(self, options: Options, stats: Stats) -> None:
        self.loop = asyncio.get_running_loop()
        self.master = MasterClient(options.masters, stats, options.zone)
        self.mover = Mover(options.transports, stats, options.zone)
        self.background = Background(self.master, stats)
        self.getter = Getter(self.master, self.mover, self.background, verify=options.verify)
        self.putter = Putter(self.master, self.mover, self.background, verify=options.verify)

    async def close(self) -> None:
        try:  # who is cancelled in here lets go of all the same
            await self.background.close()
        finally:
            try:
                await self.mover.close()
            finally:
                await self.master.close()

    def let_go(self) -> None:
        """For a store that was dropped, on whatever thread; once it was closed there is nothing to do."""
        if forks.inherited():
            return
        self.mover.abandon()
        if self.loop.is_running():
            with suppress(RuntimeError):  # it ended meanwhile
                self.loop.call_soon_threadsafe(self._close_soon)

    def _close_soon(self) -> None:
        self._closing = self.loop.create_task(self.close())
        self._closing.add_done_callback(self._closed)

    def _closed(self, closing: asyncio.Task[None]) -> None:
        if closing.cancelled():  # before it began: the loop ends, and has time for what does not wait
            self._closing = self.loop.create_task(self.master.close())
