"""The life of a get: one Lookup, the best copy of every slice, and on any failure the next copy (invariants 1, 7, 10).

The lease counts from before the request. What was not there when it ran out is looked up once more. A transfer that was
given up may still land in the memory it was meant for: a key that met one starts again in memory of its own.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from larder.background import Background
from larder.copying import checksum_of
from larder.errors import DataLost, DeadlineExceeded, LarderError
from larder.keys import batches
from larder.memory import Memory
from larder.mover import Bundle, Bundles, Mover
from larder.places import Copy, Fault, Slice
from larder.rpc import BadCopy, MasterClient
from larder.transports import Move
from larder.transports.copiers import INLINE_BYTES

ATTEMPTS: Final = 2
"""Lookups of one key in one call: the second where the lease ran out."""


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
    """One slice on its way; `copies` are those not tried yet."""

    __slots__ = ("copies", "fault", "key", "memory", "node", "number", "part", "private")

    def __init__(
        self, key: "_KeyRead", number: int, part: Slice, copies: list[Copy], memory: Memory, *, private: bool
    ) -> None:
        self.key = key
        self.number = number
        self.part = part
        self.copies = copies
        self.memory = memory
        self.private = private
        self.node: str | None = None
        self.fault: Fault | None = None


class _KeyRead:
    """One object on its way."""

    __slots__ = ("index", "key", "reads", "size", "slices", "spoiled", "stalled", "value")

    def __init__(self, index: int, key: bytes, size: int, slices: list[Slice]) -> None:
        self.index = index
        self.key = key
        self.size = size
        self.slices = slices
        self.stalled: set[Copy] = set()
        self.spoiled = False
        self.value: Any = None
        self.reads: list[_SliceRead] = []

    def begin(self, prepare: Prepare) -> None:
        """From the start, in memory of its own."""
        self.spoiled = False
        landing = prepare(self.index, self.size)
        self.value = landing.value
        self.reads = []
        start = 0
        for number, part in enumerate(self.slices):
            copies = [copy for copy in part.copies if copy not in self.stalled]
            memory = landing.memory.cut(start, part.length)
            self.reads.append(_SliceRead(self, number, part, copies, memory, private=landing.private))
            start += part.length


class Getter:
    """Reads objects for one store."""

    def __init__(self, master: MasterClient, mover: Mover, background: Background, *, verify: bool) -> None:
        self._master = master
        self._mover = mover
        self._background = background
        self._verify = verify
        self._stats = mover.stats

    async def get(self, keys: Sequence[bytes], prepare: Prepare, deadline: float) -> list[Any]:
        """Per key the landing's value, None for a miss, or the error. Raises where nothing can be known of any key."""
        begun = time.monotonic()
        answers: list[Any] = [None] * len(keys)
        for batch in batches(len(keys)):
            await self._get_batch(keys, range(batch.start, batch.stop), prepare, deadline, answers)
        self._stats.add("gets", len(keys))
        self._stats.add("get_calls")
        self._stats.add("get_seconds", time.monotonic() - begun)
        self._stats.add("misses", sum(answer is None for answer in answers))
        self._stats.add("get_errors", sum(isinstance(answer, LarderError) for answer in answers))
        return answers

    async def _get_batch(
        self, keys: Sequence[bytes], wanted: Sequence[int], prepare: Prepare, deadline: float, answers: list[Any]
    ) -> None:
        for attempt in range(ATTEMPTS):
            try:
                found = await self._master.lookup([keys[index] for index in wanted], deadline=deadline)
            except LarderError:
                if attempt:
                    return  # what the first attempt could not read stays DeadlineExceeded
                raise
            reads = [
                _KeyRead(index, keys[index], size, slices)
                for index, size, slices in zip(wanted, found.sizes, found.slices, strict=True)
                if size
            ]
            for index, size in zip(wanted, found.sizes, strict=True):
                if not size:
                    answers[index] = None
            await self._read_keys(reads, prepare, min(found.until, deadline), answers)
            wanted = [read.index for read in reads if isinstance(answers[read.index], DeadlineExceeded)]
            if not wanted or time.monotonic() >= deadline:
                return

    async def _read_keys(self, keys: Sequence[_KeyRead], prepare: Prepare, until: float, answers: list[Any]) -> None:
        todo = list(keys)
        while todo:  # at most once a copy: a copy that stalled is not tried again
            begun: list[_KeyRead] = []
            for key in todo:
                try:
                    key.begin(prepare)
                    begun.append(key)
                except LarderError as error:
                    answers[key.index] = error
            await self._read([read for key in begun for read in key.reads], until)
            todo = [key for key in begun if key.spoiled]
            for key in begun:
                if not key.spoiled:
                    answers[key.index] = self._answer(key)
            hits = [key.size for key in begun if answers[key.index] is key.value]
            self._stats.add("hits", len(hits))
            self._stats.add("get_bytes", sum(hits))

    def _answer(self, key: _KeyRead) -> Any:
        bad = next((read for read in key.reads if read.fault is not None), None)
        if bad is None:
            return key.value
        if bad.fault is Fault.LATE:
            return DeadlineExceeded("the time or the lease ran out before all bytes were there", key=key.key)
        why = "has the wrong checksum" if bad.fault is Fault.CORRUPT else "cannot be read"
        return DataLost(f"every copy of slice {bad.number} failed; the last one {why}", key=key.key, node=bad.node)

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
            checksum = read.part.checksum if self._verify else 0
            move = Move(read.memory, copy.offset, checksum=checksum, private=read.private)
            bundles.add(transport, copy.segment, move, (read, copy))
        await bundles.run(lambda bundle: self._read_bundle(bundle, until))

    async def _read_bundle(self, bundle: Bundle[tuple[_SliceRead, Copy]], until: float) -> None:
        faults = await bundle.transport.read(bundle.segment, bundle.moves, until)
        self._mover.count("read", bundle, faults)
        again: list[_SliceRead] = []
        for (read, copy), fault in zip(bundle.purposes, faults, strict=True):
            read.fault = fault
            if fault is None or fault is Fault.LATE:
                continue
            bad = BadCopy(read.key.key, read.number, copy.segment.id, copy.offset, fault)
            self._background.report(bad)
            if fault is Fault.STALLED and read.private:
                read.key.stalled.add(copy)
                read.key.spoiled = True
            elif read.copies:
                self._stats.add("failovers")
                again.append(read)
        if again:
            await self._read(again, until)

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
