"""The life of a get: one Lookup, the best copy of every slice, and on any failure the next copy (invariants 1, 7, 10).

The lease counts from before the request, and is given back when the read has ended. What was not there when it ran out
is looked up once more; so is what had no good copy, for meanwhile it may have been put again, or repaired.

A read that hangs is hedged: what it lacks is also read from the next copies, and whoever is first and verified counts.
A transfer that was given up may still land in the memory it was meant for. So a slice is read the second time into
memory of its own, a detour, and brought home at the end: to the caller's memory when the first read has ended, which is
when nothing can land there any more; instead of private memory, which has no such end, the whole object gets new. Where
the engine writes registered memory itself nothing is hedged, for the call could not end before the first read anyway.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from larder.background import Background
from larder.copying import checksum_of, copy_memory
from larder.errors import DataLost, DeadlineExceeded, LarderError, Unreachable
from larder.hedging import Hedging
from larder.keys import batches
from larder.memory import Memory, fresh_memory
from larder.mover import Bundle, Bundles, Mover
from larder.places import Copy, Fault, Slice
from larder.rpc import BadCopy, MasterClient
from larder.tasks import end, failure
from larder.transports import Move, Reach, Transport
from larder.transports.copiers import INLINE_BYTES

ATTEMPTS: Final = 2
"""Lookups of one key in one call: the second where the lease ran out, or no copy was good: others may have come."""

_NO_COPY: Final = (DataLost, Unreachable)


class Landing:
    """Where an object's bytes go. `value` is the answer once they are there."""

    __slots__ = ("memory", "private", "value")

    def __init__(self, memory: Memory, value: Any, *, private: bool) -> None:
        self.memory = memory
        self.value = value
        self.private = private


Prepare = Callable[[int, int], Landing]
"""(index of the key, object's size) -> where it goes; raises InvalidArgument where it does not fit."""


class _SliceRead:
    """One slice on its way; `copies` are those not tried yet. It is read into `memory`: its `home`, or a detour."""

    __slots__ = ("_private", "copies", "corrupt", "fault", "home", "key", "memory", "node", "number", "part")

    def __init__(self, key: bytes, number: int, part: Slice, home: Memory, *, private: bool) -> None:
        self.key = key
        self._private = private
        self.number = number
        self.part = part
        self.copies = list(part.copies)
        self.corrupt: set[Copy] = set()
        self.home = self.memory = home
        self.node: str | None = None
        self.fault: Fault | None = None

    @property
    def private(self) -> bool:
        """Whether nobody else knows the memory yet."""
        return self._private or self.memory is not self.home


class _KeyRead:
    """One object on its way. Raises LarderError where there is no place for it."""

    __slots__ = ("index", "key", "landing", "reads", "size")

    def __init__(self, index: int, key: bytes, size: int, slices: list[Slice], prepare: Prepare) -> None:
        self.index = index
        self.key = key
        self.size = size
        self.landing = prepare(index, size)
        self.reads: list[_SliceRead] = []
        start = 0
        for number, part in enumerate(slices):
            home = self.landing.memory.cut(start, part.length)
            self.reads.append(_SliceRead(key, number, part, home, private=self.landing.private))
            start += part.length

    @property
    def bad(self) -> _SliceRead | None:
        """The first slice that could not be read."""
        return next((read for read in self.reads if read.fault is not None), None)

    def bring_home(self, prepare: Prepare) -> list[Callable[[], None]]:
        """The copies to make, so that all bytes are where they belong. All reads have ended, and well."""
        astray = [read for read in self.reads if read.memory is not read.home]
        if astray and self.landing.private:
            self.landing = prepare(self.index, self.size)
            astray = self.reads
            start = 0
            for read in astray:
                read.home = self.landing.memory.cut(start, read.part.length)
                start += read.part.length
        return [partial(copy_memory, read.memory, read.home) for read in astray]


_Bundle = Bundle[tuple[_SliceRead, Copy]]
_Read = asyncio.Task[list[Fault | None]]
_Detours = dict[_SliceRead, Memory]
"""Where slices were read to by a hedge, verified."""


class Getter:
    """Reads objects for one store."""

    def __init__(self, master: MasterClient, mover: Mover, background: Background, *, verify: bool) -> None:
        self._master = master
        self._mover = mover
        self._background = background
        self._verify = verify
        self._stats = mover.stats
        self._hedging = Hedging()

    async def get(self, keys: Sequence[bytes], prepare: Prepare, deadline: float) -> list[Any]:
        """Per key the landing's value, None for a miss, or the error. Raises where nothing can be known of any key."""
        begun = time.monotonic()
        answers: list[Any] = [None] * len(keys)
        failed: dict[int, _KeyRead] = {}
        for batch in batches(len(keys)):
            await self._get_batch(keys, range(batch.start, batch.stop), prepare, deadline, answers, failed)
        if failed:
            await self._explain(answers, failed, deadline)
        self._stats.add("gets", len(keys))
        self._stats.add("get_calls")
        self._stats.add("get_seconds", time.monotonic() - begun)
        self._stats.add("misses", sum(answer is None for answer in answers))
        self._stats.add("get_errors", sum(isinstance(answer, LarderError) for answer in answers))
        return answers

    async def _explain(self, answers: list[Any], failed: dict[int, _KeyRead], deadline: float) -> None:
        """Says of what could not be reached where it was sought, and why it was not reached."""
        bad = {index: key.bad for index, key in failed.items() if type(answers[index]) is Unreachable}
        places = {
            index: [copy.segment for copy in read.part.copies if copy not in read.corrupt]
            for index, read in bad.items()
            if read is not None
        }
        for index, why in (await self._mover.explain(places, deadline)).items():
            error: LarderError = answers[index]
            answers[index] = Unreachable(f"{error.args[0]}: {why}", key=error.key, node=error.node)

    async def _get_batch(
        self,
        keys: Sequence[bytes],
        wanted: Sequence[int],
        prepare: Prepare,
        deadline: float,
        answers: list[Any],
        failed: dict[int, _KeyRead],
    ) -> None:
        lost: dict[int, _KeyRead] = {}
        for attempt in range(ATTEMPTS):
            try:
                found = await self._master.lookup([keys[index] for index in wanted], deadline=deadline)
            except LarderError:
                if attempt:
                    return  # what the first attempt could not read keeps its error
                raise
            reads: list[_KeyRead] = []
            for index, size, slices in zip(wanted, found.sizes, found.slices, strict=True):
                if index in lost and not _has_others(lost[index], slices):
                    continue
                answers[index] = None
                try:
                    if size:
                        reads.append(_KeyRead(index, keys[index], size, slices, prepare))
                except LarderError as error:
                    answers[index] = error.with_traceback(None)  # which holds this frame, and with it the answers
            try:
                await self._read_keys(reads, prepare, min(found.until, deadline), answers)
            finally:  # whatever is still under way lands where nobody looks
                self._background.release(found.lease)
            lost = {read.index: read for read in reads if isinstance(answers[read.index], _NO_COPY)}
            failed |= lost
            wanted = [read.index for read in reads if isinstance(answers[read.index], (DeadlineExceeded, *_NO_COPY))]
            if not wanted or time.monotonic() >= deadline:
                return

    async def _read_keys(self, keys: Sequence[_KeyRead], prepare: Prepare, until: float, answers: list[Any]) -> None:
        await self._read([read for key in keys for read in key.reads], until)
        hits = [key for key in keys if all(read.fault is None for read in key.reads)]
        if copies := [copy for key in hits for copy in key.bring_home(prepare)]:
            await self._mover.copiers.run(copies)
        for key in keys:
            answers[key.index] = _answer(key)
        self._stats.add("hits", len(hits))
        self._stats.add("get_bytes", sum(key.size for key in hits))

    # ---- reading ---------------------------------------------------------------------------------

    async def _read(self, reads: Sequence[_SliceRead], until: float) -> None:
        bundles: Bundles[tuple[_SliceRead, Copy]] = Bundles(self._mover)
        for read in reads:
            best = self._mover.best(read.copies)
            if best is None:
                read.fault = read.fault or Fault.UNREACHABLE
                continue
            copy, transport = best
            read.copies.remove(copy)
            read.node = copy.segment.node_id
            move = self._move(read, copy, read.memory, private=read.private)
            bundles.add(bundles.to(copy.segment, transport), move, (read, copy))
        await bundles.run(lambda bundle: self._read_bundle(bundle, until))

    async def _read_bundle(self, bundle: _Bundle, until: float) -> None:
        if bundle.transport.can_abandon(bundle.moves[0]):
            faults, detours = await self._read_hedged(bundle, until)
        else:
            faults, detours = await bundle.transport.read(bundle.segment, bundle.moves, until), {}
        self._mover.count("read", bundle, faults)
        again: list[_SliceRead] = []
        for (read, copy), fault in zip(bundle.purposes, faults, strict=True):
            read.fault = fault
            if fault is None:
                continue
            self._report(read, copy, fault)
            if read in detours:
                read.memory, read.fault = detours[read], None
            elif read.copies and fault is not Fault.LATE:
                again.append(read)
                if fault is Fault.STALLED and read.private:
                    read.memory = fresh_memory(read.part.length)
        if again:
            self._stats.add("failovers", len(again))
            await self._read(again, until)

    def _move(self, read: _SliceRead, copy: Copy, memory: Memory, *, private: bool) -> Move:
        return Move(memory, copy.offset, checksum=read.part.checksum if self._verify else 0, private=private)

    def _report(self, read: _SliceRead, copy: Copy, fault: Fault) -> None:
        if fault is Fault.CORRUPT:
            read.corrupt.add(copy)
        if fault is not Fault.LATE:
            self._background.report(BadCopy(read.key, read.number, copy.segment.id, copy.offset, fault))

    # ---- hedging ---------------------------------------------------------------------------------

    async def _read_hedged(self, bundle: _Bundle, until: float) -> tuple[list[Fault | None], _Detours]:
        """The faults of the bundle's read, LATE where it was abandoned, and what a hedge got instead."""
        size_bytes = sum(move.memory.length for move in bundle.moves)
        begun = time.monotonic()
        first = asyncio.create_task(bundle.transport.read(bundle.segment, bundle.moves, until))
        detours: _Detours = {}
        try:
            await asyncio.wait([first], timeout=self._hedging.delay_s(size_bytes))
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
            self._hedging.note(size_bytes, time.monotonic() - begun)
        return faults, detours

    async def _hedge(self, first: _Read, bundle: _Bundle, until: float) -> _Detours:
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

    def _lacking(self, bundle: _Bundle) -> list[tuple[_SliceRead, Copy, Transport]]:
        """What a hedge reads, and from where; nothing where it could not end the read, or goes beyond the budget."""
        found: list[tuple[_SliceRead, Copy, Transport]] = []
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
        if not found or not self._hedging.take(size_bytes):
            return []
        self._stats.add("hedges")
        self._stats.add("hedged_bytes", size_bytes)
        return found

    async def _read_second(self, lacking: Sequence[tuple[_SliceRead, Copy, Transport]], until: float) -> _Detours:
        bundles: Bundles[tuple[_SliceRead, Copy]] = Bundles(self._mover)
        for read, copy, transport in lacking:
            move = self._move(read, copy, fresh_memory(read.part.length), private=True)
            bundles.add(bundles.to(copy.segment, transport), move, (read, copy))
        got: _Detours = {}

        async def each(bundle: _Bundle) -> None:
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

    # ---- views -----------------------------------------------------------------------------------

    async def view(self, key: bytes, deadline: float) -> tuple[memoryview, float] | None:
        """The pool's own bytes of a one-slice object on this host, verified, and until when they are the object's.

        None where the object is not there, or not so: then get() tells.
        """
        shm = self._mover.shm
        if shm is None:
            return None
        found = await self._master.lookup([key], deadline=deadline)
        for part in found.slices[0] if len(found.slices[0]) == 1 else ():
            for copy in part.copies:
                view = shm.view(copy.segment, copy.offset, part.length)
                if view is not None and await self._is_intact(view, part):
                    self._stats.add("views")
                    return view, found.until
        return None

    async def _is_intact(self, view: memoryview, part: Slice) -> bool:
        if not self._verify or not part.checksum:
            return True
        work = partial(checksum_of, view)
        digest = work() if part.length <= INLINE_BYTES else (await self._mover.copiers.run([work]))[0]
        return digest == part.checksum


def _has_others(key: _KeyRead, slices: Sequence[Slice]) -> bool:
    """Whether a slice that could not be read has copies now that it had not when the object was read."""
    if len(slices) != len(key.reads):
        return bool(slices)
    pairs = zip(key.reads, slices, strict=True)
    return any(read.fault is not None and not set(part.copies) <= set(read.part.copies) for read, part in pairs)


def _answer(key: _KeyRead) -> Any:
    bad = key.bad
    if bad is None:
        return key.landing.value
    if bad.fault is Fault.LATE:
        return DeadlineExceeded("the time or the lease ran out before all bytes were there", key=key.key)
    if bad.corrupt.issuperset(bad.part.copies):
        return DataLost(f"every copy of slice {bad.number} has the wrong checksum", key=key.key, node=bad.node)
    return Unreachable(f"no copy of slice {bad.number} can be read from this host", key=key.key, node=bad.node)
