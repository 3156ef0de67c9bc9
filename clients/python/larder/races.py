"""Hedged reads: what a read that hangs still lacks is also read from other copies, and the first verified counts.

`larder.hedging` says when a second read is worth its bytes. It goes to memory of its own, for the first may still land
where it was meant to (`larder.reads`). Whichever loses is cancelled, and has ended before the answer is there.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from larder.hedging import Hedging
from larder.memory import Memory, fresh_memory
from larder.mover import Bundle, Bundles, Mover
from larder.places import Copy, Fault
from larder.reads import SliceRead
from larder.tasks import end, failure
from larder.transports import Reach, Transport

ReadBundle = Bundle[tuple[SliceRead, Copy]]
Detours = dict[SliceRead, Memory]
"""Where slices were read to by a hedge, verified."""
_Reading = asyncio.Task[list[Fault | None]]


class Races:
    """Of one store's reads."""

    def __init__(self, mover: Mover, report: Callable[[SliceRead, Copy, Fault], None]) -> None:
        """`report` hears of copies that the second read found bad."""
        self._mover = mover
        self._report = report
        self._stats = mover.stats
        self.hedging = Hedging()

    async def read(self, bundle: ReadBundle, until: float) -> tuple[list[Fault | None], Detours]:
        """The faults of the bundle's read, LATE where it was abandoned, and what a hedge got instead."""
        size_bytes = sum(move.memory.length for move in bundle.moves)
        begun = time.monotonic()
        first = asyncio.create_task(bundle.transport.read(bundle.segment, bundle.moves, until))
        detours: Detours = {}
        try:
            await asyncio.wait([first], timeout=self.hedging.delay_s(size_bytes))
            if not first.done():
                detours = await self._hedge(first, bundle, until)
            if not detours:
                await asyncio.wait([first])
        finally:
            await end(first)
        if (error := failure(first)) is not None:
            del first
            try:
                raise error
            finally:
                del error
        abandoned = [None if move.arrived else Fault.LATE for move in bundle.moves]
        faults = abandoned if first.cancelled() else first.result()
        saved = [read in detours for (read, _), fault in zip(bundle.purposes, faults, strict=True) if fault is not None]
        if any(saved):
            self._stats.add("hedges_won")
        if all(saved):
            self.hedging.note(size_bytes, time.monotonic() - begun)
        return faults, detours

    async def _hedge(self, first: _Reading, bundle: ReadBundle, until: float) -> Detours:
        """Races the bundle's read. Where it answers and the first is not done, it got all that the first lacks."""
        lacking = self._lacking(bundle)
        if not lacking:
            return {}
        second = asyncio.create_task(self._read_second(lacking, until))
        try:
            await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
            if first.done() and (failure(first) is not None or not any(first.result())):
                return {}
            await asyncio.wait([second])
            got = second.result() if failure(second) is None else {}
            if len(got) < len(lacking):
                await asyncio.wait([first])
            return got
        finally:
            await end(second)

    def _lacking(self, bundle: ReadBundle) -> list[tuple[SliceRead, Copy, Transport]]:
        """What a hedge reads, and from where; nothing where it could not end the read, or goes beyond the budget."""
        found: list[tuple[SliceRead, Copy, Transport]] = []
        for move, (read, _) in zip(bundle.moves, bundle.purposes, strict=True):
            if move.arrived:
                continue
            best = self._mover.best(read.copies)
            if best is None or not bundle.transport.can_abandon(move):
                return []
            copy, transport = best
            if transport.reach(copy.segment) is not Reach.GOOD:
                return []
            found.append((read, copy, transport))
        size_bytes = sum(read.part.length for read, _, _ in found)
        if not found or not self.hedging.take(size_bytes):
            return []
        self._stats.add("hedges")
        self._stats.add("hedged_bytes", size_bytes)
        return found

    async def _read_second(self, lacking: Sequence[tuple[SliceRead, Copy, Transport]], until: float) -> Detours:
        bundles: Bundles[tuple[SliceRead, Copy]] = Bundles(self._mover)
        for read, copy, transport in lacking:
            move = read.move(copy, fresh_memory(read.part.length), private=True)
            bundles.add(bundles.to(copy.segment, transport), move, (read, copy))
        got: Detours = {}

        async def each(bundle: ReadBundle) -> None:
            faults = await bundle.transport.read(bundle.segment, bundle.moves, until)
            self._mover.count("read", bundle, faults)
            for move, (read, copy), fault in zip(bundle.moves, bundle.purposes, faults, strict=True):
                if fault is None:
                    got[read] = move.memory
                elif fault is not Fault.LATE:
                    read.copies.remove(copy)
                    self._report(read, copy, fault)

        await bundles.run(each)
        return got
