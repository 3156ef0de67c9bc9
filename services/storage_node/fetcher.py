"""Copies slices from other nodes into this node's pool, with a client's transports and the pool as the buffer.

Bytes are verified on the way. The engine lands them in staging memory first, so that a transfer that was given up
never reaches the pool later (invariant 7). At most TRANSFERS_MAX at once (invariant 12).
"""

import asyncio
import time
from typing import Final

from larder.memory import Memory
from larder.mover import Mover
from larder.places import Fault, Segment, segment_of
from larder.stats import Stats
from larder.transports import Move
from larder.v1 import types_pb2

from services.common.held import HeldCopy
from services.storage_node.core.index import DONE, Answer, Outcome
from services.storage_node.pool import Pool

TRANSFERS_MAX: Final = 4


class Fetcher:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._mover = Mover(("shm", "engine"), Stats())
        self._places = asyncio.Semaphore(TRANSFERS_MAX)

    async def fetch(self, copy: HeldCopy, source: types_pb2.Segment, source_offset: int, timeout_s: float) -> Answer:
        """Fills the copy's extent with verified bytes."""
        until = time.monotonic() + timeout_s
        if copy.offset + copy.length > self._pool.capacity_bytes:
            return Answer(Outcome.REJECTED, f"offset {copy.offset} and {copy.length} bytes lie outside the pool")
        segment = segment_of(source)
        transport = self._mover.way_to(segment)
        if transport is None:
            return Answer(Outcome.REJECTED, f"no way to {await self._explain(segment, until)}")
        address = self._pool.data_address + copy.offset
        move = Move(Memory(((address, copy.length),), copy.length, self._pool), source_offset, checksum=copy.checksum)
        async with self._places:
            (fault,) = await transport.read(segment, [move], until)
        if fault is None:
            return DONE
        if fault is Fault.CORRUPT:
            return Answer(Outcome.CORRUPT, f"node {segment.node_id} has other bytes than were put")
        if fault is Fault.LATE:
            return Answer(Outcome.REJECTED, f"node {segment.node_id}: the bytes were not here in {timeout_s:g} s")
        return Answer(Outcome.REJECTED, await self._explain(segment, until))

    async def _explain(self, source: Segment, until: float) -> str:
        """Which address failed, and why: for the master's log."""
        return (await self._mover.explain({0: [source]}, until))[0]

    async def close(self) -> None:
        await self._mover.close()
