"""Blocks that lie in a device's memory: gathered into and scattered from pinned host buffers, beside the computation.

A bounded set of buffers, each with a device buffer of its own, and one side stream. A buffer belongs to one object at
a time, from before the first byte until the store has said that nothing more can move (invariant 12). A copy waits
for the fence that the engine's thread laid down: blocks are read after the step that computes them, and written after
the step that may still clear them. The same code runs on host tensors, which is how it is tested.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Final

import torch

from larder.vllm.jobs import SKIP
from larder.vllm.memory import KVMemory

STAGING_BYTES: Final = 256 << 20
SLOTS_MIN: Final = 2
SLOTS_MAX: Final = 64


class Slot:
    """A pinned host buffer for one object, and its twin on the device."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type != "cpu")
        self.device = self.host if device.type == "cpu" else torch.empty(size, dtype=torch.uint8, device=device)
        self.bytes = memoryview(self.host.numpy())


class Staging:
    """Moves objects between blocks on a device and slots, in order with the engine's own stream."""

    def __init__(self, memory: KVMemory, *, object_bytes_max: int, staging_bytes: int) -> None:
        self._memory = memory
        count = min(SLOTS_MAX, max(SLOTS_MIN, staging_bytes // object_bytes_max))
        self._free: list[Slot] = [Slot(object_bytes_max, memory.device) for _ in range(count)]
        self._slots = asyncio.Semaphore(count)
        self.buffers = tuple(slot.bytes for slot in self._free)
        # cuda, xpu and their like share the names Stream, Event and stream(); host memory needs none of them.
        self._accelerator: Any = None if memory.device.type == "cpu" else getattr(torch, memory.device.type)
        self._stream: Any = None if self._accelerator is None else self._accelerator.Stream(memory.device)

    def fence(self) -> Any:
        """A point in the engine's stream, for gather and scatter to wait for. Call it on the engine's thread."""
        if self._accelerator is None:
            return None
        event = self._accelerator.Event()
        event.record(self._accelerator.current_stream(self._memory.device))
        return event

    @asynccontextmanager
    async def take(self, wanted: int) -> AsyncIterator[list[Slot]]:
        """At least one slot, and up to `wanted` of those that are free."""
        await self._slots.acquire()
        taken = [self._free.pop()]
        while len(taken) < wanted and self._free and not self._slots.locked():
            await self._slots.acquire()
            taken.append(self._free.pop())
        try:
            yield taken
        finally:
            self._free.extend(taken)
            for _ in taken:
                self._slots.release()

    def gather(self, slot: Slot, group: int, blocks: Sequence[int], fence: Any) -> memoryview:
        """Copy an object's blocks into a slot; returns its bytes. Blocks the calling thread until they are there."""
        size = self._memory.object_bytes(group, len(blocks))
        with self._beside(fence):
            index = torch.tensor(blocks, dtype=torch.int64, device=self._memory.device)
            for rows, part in self._parts(slot, group, len(blocks)):
                source, target = _words(rows, part)
                torch.index_select(source, 0, index, out=target)
            if slot.device is not slot.host:
                slot.host[:size].copy_(slot.device[:size], non_blocking=True)
            self._wait()
        return slot.bytes[:size]

    def scatter(self, slot: Slot, group: int, blocks: Sequence[int], fence: Any) -> None:
        """Copy a slot's bytes into an object's blocks, except where SKIP stands. Blocks until they are there."""
        size = self._memory.object_bytes(group, len(blocks))
        wanted = [at for at, block in enumerate(blocks) if block != SKIP]
        with self._beside(fence):
            if slot.device is not slot.host:
                slot.device[:size].copy_(slot.host[:size], non_blocking=True)
            into = torch.tensor([blocks[at] for at in wanted], dtype=torch.int64, device=self._memory.device)
            of = torch.tensor(wanted, dtype=torch.int64, device=self._memory.device)
            for rows, part in self._parts(slot, group, len(blocks)):
                target, source = _words(rows, part)
                target.index_copy_(0, into, source.index_select(0, of))
            self._wait()

    def _parts(self, slot: Slot, group: int, blocks: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each layer's rows and its part of the slot, as rows of the same size."""
        parts, at = [], 0
        for rows in self._memory.groups[group]:
            size = blocks * rows.shape[1]
            parts.append((rows, slot.device[at : at + size].view(blocks, rows.shape[1])))
            at += size
        return parts

    def _beside(self, fence: Any) -> Any:
        if self._accelerator is None:
            return nullcontext()
        self._stream.wait_event(fence)
        return self._accelerator.stream(self._stream)

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


def _words(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same bytes in words of 8 where both allow it: copies by index go word by word."""
    aligned = all(t.shape[1] % 8 == 0 and t.stride(0) % 8 == 0 and t.storage_offset() % 8 == 0 for t in (left, right))
    return (left.view(torch.int64), right.view(torch.int64)) if aligned else (left, right)
