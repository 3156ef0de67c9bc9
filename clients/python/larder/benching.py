"""`larder bench`: what calls of a running cluster take from here, beside what this host's memory could do.

It takes only free room, so that nothing of others is evicted for it; its keys have a prefix of their own, are removed
whatever happens, and have a time to live in case it is killed. Bounded in time and in bytes.
"""

import asyncio
import ctypes
import mmap
import os
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from statistics import quantiles
from typing import Any, Final

import numpy as np

from larder import aio
from larder.arguments import or_raise
from larder.errors import InvalidArgument, LarderError
from larder.options import Options
from larder.rpc import MasterClient
from larder.stats import Stats

PREFIX: Final = "larder-bench"
SIZES: Final = (64 * 2**10, 2**20, 16 * 2**20)
BATCH_KEYS_MAX: Final = 256
SINGLES: Final = 8
FREE_SHARE: Final = 4
"""At most one part in this many of what is free is taken."""
TTL_S: Final = 300.0
REMOVE_S: Final = 10.0
MATCH_KEYS: Final = 2_048
ROOM_POLL_S: Final = 0.2


class NoRoom(LarderError):
    """The cluster has not enough free room."""

    remedy = "put less with --bytes, or start another storage node; a full cluster would evict objects for it"


@dataclass(slots=True)
class Row:
    """One operation on objects of one size. Times of single calls, throughput of batches."""

    size_bytes: int
    operation: str
    batch_keys: int
    times_s: list[float] = field(default_factory=list)
    gbps: list[float] = field(default_factory=list)
    limit_gbps: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Milliseconds; throughputs are medians."""
        return {
            "size_bytes": self.size_bytes,
            "operation": self.operation,
            "calls": len(self.times_s),
            "p50_ms": 1e3 * _quantile(self.times_s, 50),
            "p99_ms": 1e3 * _quantile(self.times_s, 99),
            "batch_keys": self.batch_keys,
            "gbps": _quantile(self.gbps, 50) if self.gbps else None,
            "memory_gbps": self.limit_gbps or None,
        }


@dataclass(frozen=True, slots=True)
class Result:
    rows: list[dict[str, Any]]
    moved_bytes: dict[str, int]
    """By transport: shm is shared memory, engine the transfer engine."""
    seconds: float
    left_out_bytes: list[int]
    """Sizes of objects for which there was not room enough."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def bench(options: Options, sizes: Sequence[int], bytes_max: int, seconds: float) -> Result:
    """Raises NoRoom, InvalidArgument and whatever a store raises."""
    if bytes_max < min(sizes):
        raise InvalidArgument(f"no object of {min(sizes)} bytes fits into {bytes_max}: give more with --bytes")
    begun = time.monotonic()
    room = min(bytes_max, await _free(options) // FREE_SHARE)
    if room < min(sizes):
        raise NoRoom(f"{room * FREE_SHARE} bytes are free in the cluster, of which a {FREE_SHARE}th may be used")
    fit = [size for size in sizes if size <= room]
    rows: list[Row] = []
    async with aio.Store(options) as store:
        for number, size in enumerate(fit):
            until = begun + seconds * (number + 1) / len(fit)
            share = room // len(fit)  # what was removed is not free at once
            rows += await _size(store, options, size, max(1, min(BATCH_KEYS_MAX, share // size)), until)
        stats = store.stats()
    moved = {
        name: int(sum(stats.get(f"{what}_bytes_{name}", 0) for what in ("written", "read")))
        for name in ("shm", "engine")
    }
    left_out = [size for size in sizes if size > room]
    return Result([row.as_dict() for row in rows], moved, time.monotonic() - begun, left_out)


async def _free(options: Options) -> int:
    """Bytes that are free in pools which can be written, wherever a copy would go."""
    async with MasterClient(options.masters, Stats()) as client:
        status = await client.status(deadline=time.monotonic() + options.timeout_s)
    nodes = [node for node in status.nodes if node.state == "attached" and not node.draining]
    return sum(part.free_bytes for node in nodes for part in node.segments)


async def _size(store: aio.Store, options: Options, size: int, count: int, until: float) -> list[Row]:
    """Rounds of a batch and some single calls, at least one."""
    sources, targets = (np.empty((count, size), np.uint8) for _ in range(2))
    sources[:] = np.frombuffer(os.urandom(min(size, 1 << 16)), np.uint8)[np.arange(size) % min(size, 1 << 16)]
    put, get, match = (Row(size, operation, count) for operation in ("put", "get", "match"))
    put.limit_gbps = get.limit_gbps = _memory_gbps(sources)
    first = True
    while await _has_room(options, count * size, until) and (first or time.monotonic() < until):
        async with _keys(options, count) as keys:
            singles = keys[: min(SINGLES, count)]
            for index, key in enumerate(singles):
                await _timed(put, store.put(key, sources[index], ttl_s=TTL_S))
            for index, key in enumerate(singles):
                await _timed(get, store.get_into(key, targets[index]))
            if count > len(singles):
                rest, left = keys[len(singles) :], list(sources[len(singles) :])
                put.gbps.append(await _batch(size, store.put_many(rest, left, ttl_s=TTL_S)))
                get.gbps.append(await _batch(size, store.get_many_into(rest, list(targets[len(singles) :]))))
            await _timed(match, store.match(keys[:MATCH_KEYS]))
            if first and not np.array_equal(sources, targets):
                raise RuntimeError("what came back is not what was put")
        first = False
    if first:
        raise NoRoom(f"not {FREE_SHARE} times {count * size} bytes are free, also of what was removed before")
    return [put, get, match]


async def _has_room(options: Options, wanted: int, until: float) -> bool:
    """Whether that much is free. What was removed comes back once leases on it have ended: waits a while for that."""
    while await _free(options) < FREE_SHARE * wanted:
        if time.monotonic() >= until:
            return False
        await asyncio.sleep(ROOM_POLL_S)
    return True


@asynccontextmanager
async def _keys(options: Options, count: int) -> AsyncIterator[list[bytes]]:
    """Keys of a round; what was stored under them is removed, even if the round is interrupted."""
    name = f"{PREFIX}/{os.urandom(8).hex()}"
    keys = [f"{name}/{number}".encode() for number in range(count)]
    try:
        yield keys
    finally:
        removing = asyncio.ensure_future(_remove(options, keys))
        try:
            await asyncio.shield(removing)
        except asyncio.CancelledError:
            await removing
            raise


async def _remove(options: Options, keys: Sequence[bytes]) -> None:
    async with MasterClient(options.masters, Stats()) as client:
        await client.remove(keys, deadline=time.monotonic() + REMOVE_S)


async def _timed(row: Row, call: Awaitable[Any]) -> None:
    begun = time.monotonic()
    answer = await call
    row.times_s.append(time.monotonic() - begun)
    if answer is None:
        raise NoRoom("an object was evicted before it was read back")


async def _batch(size: int, call: Awaitable[list[Any]]) -> float:
    """GB/s."""
    begun = time.monotonic()
    answers = await call
    took_s = time.monotonic() - begun
    if any(or_raise(answer) is None for answer in answers):
        raise NoRoom("an object was evicted before it was read back")
    return len(answers) * size / took_s / 1e9


def _memory_gbps(sources: "np.ndarray[Any, Any]") -> float:
    """One thread, one memmove an object into shared memory that is there already; the median of three."""
    with mmap.mmap(-1, sources.nbytes) as shared:
        base = ctypes.c_char.from_buffer(shared)
        address = ctypes.addressof(base)
        ctypes.memset(address, 1, sources.nbytes)
        found = []
        for _ in range(3):
            begun = time.monotonic()
            for index, source in enumerate(sources):
                ctypes.memmove(address + index * sources.shape[1], source.ctypes.data, sources.shape[1])
            found.append(sources.nbytes / (time.monotonic() - begun) / 1e9)
        del base
    return sorted(found)[1]


def _quantile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]
