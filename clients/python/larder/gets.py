"""The life of a get: one Lookup, the best copy of every slice, and on any failure the next copy (invariants 1, 7, 10).

The lease counts from before the request, and is given back when the read has ended. What was not there when it ran out
is looked up once more; so is what had no good copy, for meanwhile it may have been put again, or repaired.

A read that hangs is hedged (`larder.races`), except where the engine writes registered memory itself: there the call
could not end before the first read anyway.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from larder.background import Background
from larder.copying import checksum_of
from larder.errors import DataLost, DeadlineExceeded, LarderError, Unreachable
from larder.keys import batches
from larder.memory import fresh_memory
from larder.mover import Bundles, Mover
from larder.places import Copy, Fault, Slice
from larder.races import Races, ReadBundle
from larder.reads import KeyRead, Prepare, SliceRead
from larder.rpc import BadCopy, MasterClient
from larder.transports.copiers import INLINE_BYTES

ATTEMPTS: Final = 2
"""Lookups of one key in one call: a second one if the lease ran out or no copy was good, as others may have come."""

_NO_COPY: Final = (DataLost, Unreachable)


class Getter:
    """Reads objects for one store."""

    def __init__(self, master: MasterClient, mover: Mover, background: Background, *, verify: bool) -> None:
        self._master = master
        self._mover = mover
        self._background = background
        self._verify = verify
        self._stats = mover.stats
        self._report = partial(_report, background)  # no method: what is held in a circle goes by a collector only
        self._races = Races(mover, self._report)

    async def get(self, keys: Sequence[bytes], prepare: Prepare, deadline: float) -> list[Any]:
        """Per key the landing's value, None for a miss, or the error. Raises if nothing is known about any key."""
        begun = time.monotonic()
        answers: list[Any] = [None] * len(keys)
        failed: dict[int, KeyRead] = {}
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

    async def _explain(self, answers: list[Any], failed: dict[int, KeyRead], deadline: float) -> None:
        """Adds to the errors where the bytes were sought, and why they were not reached."""
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
        failed: dict[int, KeyRead],
    ) -> None:
        lost: dict[int, KeyRead] = {}
        for attempt in range(ATTEMPTS):
            try:
                found = await self._master.lookup([keys[index] for index in wanted], deadline=deadline)
            except LarderError:
                if attempt:
                    return  # what the first attempt could not read keeps its error
                raise
            reads: list[KeyRead] = []
            for index, size, slices in zip(wanted, found.sizes, found.slices, strict=True):
                if index in lost and not lost[index].has_others(slices):
                    continue
                answers[index] = None
                try:
                    if size:
                        reads.append(KeyRead(index, keys[index], size, slices, prepare, verify=self._verify))
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

    async def _read_keys(self, keys: Sequence[KeyRead], prepare: Prepare, until: float, answers: list[Any]) -> None:
        await self._read([read for key in keys for read in key.reads], until)
        hits = [key for key in keys if all(read.fault is None for read in key.reads)]
        if copies := [copy for key in hits for copy in key.bring_home(prepare)]:
            await self._mover.copiers.run(copies)
        for key in keys:
            answers[key.index] = key.answer()
        self._stats.add("hits", len(hits))
        self._stats.add("get_bytes", sum(key.size for key in hits))

    # ---- reading ---------------------------------------------------------------------------------

    async def _read(self, reads: Sequence[SliceRead], until: float) -> None:
        bundles: Bundles[tuple[SliceRead, Copy]] = Bundles(self._mover)
        for read in reads:
            best = self._mover.best(read.copies)
            if best is None:
                read.fault = read.fault or Fault.UNREACHABLE
                continue
            copy, transport = best
            read.copies.remove(copy)
            read.node = copy.segment.node_id
            move = read.move(copy, read.memory, private=read.private)
            bundles.add(bundles.to(copy.segment, transport), move, (read, copy))
        await bundles.run(lambda bundle: self._read_bundle(bundle, until))

    async def _read_bundle(self, bundle: ReadBundle, until: float) -> None:
        if bundle.transport.can_abandon(bundle.moves[0]):
            faults, detours = await self._races.read(bundle, until)
        else:
            faults, detours = await bundle.transport.read(bundle.segment, bundle.moves, until), {}
        self._mover.count("read", bundle, faults)
        again: list[SliceRead] = []
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

    # ---- views -----------------------------------------------------------------------------------

    async def view(self, key: bytes, deadline: float) -> tuple[memoryview, float] | None:
        """The pool's own bytes of a one-slice object on this host, verified, and until when they are the object's.

        None if the object is missing, or not like that: get() tells which.
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


def _report(background: Background, read: SliceRead, copy: Copy, fault: Fault) -> None:
    if fault is Fault.CORRUPT:
        read.corrupt.add(copy)
    if fault is not Fault.LATE:
        background.report(BadCopy(read.key, read.number, copy.segment.id, copy.offset, fault))
