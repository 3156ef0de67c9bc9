"""Copies slices from other nodes into this node's pool: the same transports as a client's, the pool as the buffer.

Bytes are verified on the way. The engine lands them in memory of its own first, so that a transfer that was given up
never reaches the pool later (invariant 7). At most TRANSFERS_MAX at once (12).
"""

import asyncio
import time
from typing import Final

from larder.memory import Memory
from larder.mover import Mover
from larder.places import Segment
from larder.stats import Stats
from larder.transports import Move
from larder.v1 import types_pb2

from services.storage_node.core.index import Copy
from services.storage_node.pool import Pool

TRANSFERS_MAX: Final = 4


class Fetcher:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._mover = Mover(("shm", "engine"), Stats())
        self._places = asyncio.Semaphore(TRANSFERS_MAX)

    async def fetch(self, copy: Copy, source: types_pb2.Segment, source_offset: int, timeout_s: float) -> str:
        """Fills the copy's extent with verified bytes; why not, where it cannot."""
        until = time.monotonic() + timeout_s
        if copy.offset + copy.length > self._pool.capacity_bytes:
            return f"offset {copy.offset} and {copy.length} bytes lie outside the pool"
        segment = Segment(
            source.id,
            source.node_id,
            source.capacity_bytes,
            source.shm_path,
            source.shm_token,
            source.shm_data_offset,
            source.engine_endpoint,
            source.engine_base,
            source.engine_protocol,
        )
        transport = self._mover.way_to(segment)
        if transport is None:
            return f"no way to node {segment.node_id}"
        address = self._pool.data_address + copy.offset
        move = Move(Memory(((address, copy.length),), copy.length, self._pool), source_offset, checksum=copy.checksum)
        async with self._places:
            (fault,) = await transport.read(segment, [move], until)
        return "" if fault is None else f"reading from node {segment.node_id}: {fault.name.lower()}"

    async def close(self) -> None:
        await self._mover.close()
