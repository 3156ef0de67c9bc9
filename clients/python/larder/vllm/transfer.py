"""Two ways to move objects between KV blocks and the store: straight from host memory, or through staging buffers.

Both keep one promise to the worker, whether they return, raise or are cancelled: after `load` nothing can land in the
blocks any more, and after `save` nothing that counts reads them. For the bytes in flight the store gives that promise
(a read ends when the transport has answered for every transfer into its buffers; a write that was given up is never
made readable); a copy of our own is never left half done.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from larder.tasks import unbroken
from larder.vllm.link import AsyncStore, Buffers
from larder.vllm.memory import HostRuns, KVMemory
from larder.vllm.staging import STAGING_BYTES, Slot, Staging

GONE: Final = "they were found, and gone before they were loaded"
KEYS_MAX: Final = 1_024
"""Objects to one call of the store."""


@dataclass(frozen=True, slots=True)
class Item:
    """One object: its key, and the blocks of a group that it is made of."""

    key: bytes
    group: int
    blocks: tuple[int, ...]
    depth: int


@dataclass(slots=True)
class Saved:
    """What became of puts, in objects; `error` is one of those that failed."""

    put: int = 0
    existed: int = 0
    existed_bytes: int = 0
    failed: int = 0
    put_bytes: int = 0
    error: str = ""


class Path(Protocol):
    """A way between blocks and store. `fence` is laid down on the engine's thread, the rest runs on the link's loop."""

    def fence(self) -> Any: ...

    def object_bytes(self, item: Item) -> int: ...

    async def load(
        self, store: AsyncStore, items: Sequence[Item], fence: Any, landed: list[bool], faults: list[str]
    ) -> None:
        """Fill the items' blocks; sets `landed` where an item's bytes are all there and as they were put.

        `faults` gets a reason for each other one that the store answered for.
        """

    async def save(
        self, store: AsyncStore, items: Sequence[Item], fence: Any, saved: Saved, started: Callable[[int], None]
    ) -> None:
        """Put the items, counting into `saved`; `started` hears of items the master knows are on their way."""


class DirectPath:
    """Blocks in host memory: the store reads and writes them in place."""

    def __init__(self, memory: KVMemory, *, copies: int) -> None:
        self._memory = memory
        self._runs = HostRuns(memory)
        self._copies = copies

    @property
    def buffers(self) -> tuple[memoryview, ...]:
        """The memory that transfers touch, for the transport to know."""
        return self._runs.storages

    def fence(self) -> None:
        """Host memory has no stream: what the engine computed is there."""

    def object_bytes(self, item: Item) -> int:
        """The object's size."""
        return self._memory.object_bytes(item.group, len(item.blocks))

    async def load(
        self, store: AsyncStore, items: Sequence[Item], fence: Any, landed: list[bool], faults: list[str]
    ) -> None:
        """See Path."""
        for at, batch in _batches(items, KEYS_MAX):
            pieces = [self._runs.pieces(item.group, item.blocks) for item in batch]
            landed[at : at + len(batch)] = await _get(store, batch, pieces, faults)

    async def save(
        self, store: AsyncStore, items: Sequence[Item], fence: Any, saved: Saved, started: Callable[[int], None]
    ) -> None:
        """See Path."""
        for _, batch in _batches(items, KEYS_MAX):
            pieces = [self._runs.pieces(item.group, item.blocks) for item in batch]
            await _put(store, batch, pieces, saved, started, self._copies)


class StagedPath:
    """Blocks in a device's memory: through a bounded set of pinned buffers, as many objects at a time as are free."""

    def __init__(
        self, memory: KVMemory, *, chunk_blocks: Sequence[int], copies: int, staging_bytes: int = STAGING_BYTES
    ) -> None:
        largest = max(memory.object_bytes(group, blocks) for group, blocks in enumerate(chunk_blocks))
        self._staging = Staging(memory, object_bytes_max=largest, staging_bytes=staging_bytes)
        self._memory = memory
        self._copies = copies

    @property
    def buffers(self) -> tuple[memoryview, ...]:
        """The memory that transfers touch, for the transport to know."""
        return self._staging.buffers

    def fence(self) -> Any:
        """The engine's stream, as it is now."""
        return self._staging.fence()

    def object_bytes(self, item: Item) -> int:
        """The object's size."""
        return self._memory.object_bytes(item.group, len(item.blocks))

    async def load(
        self, store: AsyncStore, items: Sequence[Item], fence: Any, landed: list[bool], faults: list[str]
    ) -> None:
        """See Path."""
        at = 0
        while at < len(items):
            async with self._staging.take(len(items) - at) as slots:
                batch = items[at : at + len(slots)]
                pieces = [[slot.bytes[: self.object_bytes(item)]] for slot, item in zip(slots, batch, strict=True)]
                good = await _get(store, batch, pieces, faults)
                await unbroken(asyncio.to_thread(self._scatter, slots, batch, good, fence))
                landed[at : at + len(batch)] = good
                at += len(batch)

    async def save(
        self, store: AsyncStore, items: Sequence[Item], fence: Any, saved: Saved, started: Callable[[int], None]
    ) -> None:
        """See Path."""
        at = 0
        while at < len(items):
            async with self._staging.take(len(items) - at) as slots:
                batch = items[at : at + len(slots)]
                pieces = await unbroken(asyncio.to_thread(self._gather, slots, batch, fence))
                await _put(store, batch, pieces, saved, started, self._copies)
                at += len(batch)

    def _scatter(self, slots: Sequence[Slot], batch: Sequence[Item], good: Sequence[bool], fence: Any) -> None:
        for slot, item, ok in zip(slots, batch, good, strict=True):
            if ok:
                self._staging.scatter(slot, item.group, item.blocks, fence)

    def _gather(self, slots: Sequence[Slot], batch: Sequence[Item], fence: Any) -> list[Buffers]:
        pairs = zip(slots, batch, strict=True)
        return [[self._staging.gather(slot, item.group, item.blocks, fence)] for slot, item in pairs]


async def _get(store: AsyncStore, batch: Sequence[Item], pieces: Sequence[Buffers], faults: list[str]) -> list[bool]:
    results = await store.get_many_into([item.key for item in batch], pieces)
    sizes = [sum(map(len, piece)) for piece in pieces]
    # The size of what was asked for is the only good answer: None is a miss, an error a copy that could not be read.
    good = [result == size for result, size in zip(results, sizes, strict=True)]
    for result, size, ok in zip(results, sizes, good, strict=True):
        if isinstance(result, int) and not ok:
            faults.append(f"an object of {result} bytes where {size} were expected")
        elif not ok:
            faults.append(GONE if result is None else reason(result))
    return good


async def _put(
    store: AsyncStore,
    batch: Sequence[Item],
    pieces: Sequence[Buffers],
    saved: Saved,
    started: Callable[[int], None],
    copies: int,
) -> None:
    results = await store.put_many(
        [item.key for item in batch],
        pieces,
        copies=copies,
        depths=[item.depth for item in batch],
        started=lambda: started(len(batch)),
        wait_s=0.0,  # what finds no room is not saved: to wait for it would hold the engine's blocks
    )
    for result, piece in zip(results, pieces, strict=True):
        if isinstance(result, Exception):
            saved.failed += 1
            saved.error = reason(result)
            continue
        size = sum(len(part) for part in piece)
        if result.existed:
            saved.existed += 1
            saved.existed_bytes += size
        else:
            saved.put += 1
            saved.put_bytes += size


def reason(error: BaseException) -> str:
    """Why something failed, without the key, so that the same reason has the same words."""
    return str(error.args[0]) if error.args and error.args[0] else type(error).__name__


def _batches(items: Sequence[Item], size: int) -> Iterator[tuple[int, Sequence[Item]]]:
    return ((at, items[at : at + size]) for at in range(0, len(items), size))
