"""The life of a put: PutStart, all copies of all slices at once, PutEnd (invariants 1, 2 and 7).

Nothing is written after the write's time, counted from before PutStart. What could not be written is said in PutEnd; a
put of which some slice has no copy at all, or that is cancelled, is aborted in the background and expires otherwise.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from larder.arguments import Terms
from larder.background import Background
from larder.copying import checksum
from larder.errors import LarderError, NoSpace, PinRefused, TooLarge, Unreachable, WriteFailed
from larder.keys import batches
from larder.memory import Memory
from larder.mover import Bundle, Bundles, Mover
from larder.places import Fault, Segment
from larder.rpc import MasterClient
from larder.transports import Move
from larder.v1.types_pb2 import Result
from larder.writes import EXISTED, PutResult, Write

_OK, _EXISTS, _NO_SPACE = int(Result.RESULT_OK), int(Result.RESULT_EXISTS), int(Result.RESULT_NO_SPACE)
_TOO_LARGE, _PIN_REFUSED = int(Result.RESULT_TOO_LARGE), int(Result.RESULT_PIN_REFUSED)

ATTEMPTS: Final = 3
"""Of one key in one call; later ones only if its node was lost."""
END_SHARE: Final = 0.1
"""The share of the time left once places are known that is kept for PutEnd."""


_CopyWrite = tuple[Write, int, int]
"""What a Move of this module is for: of which write which slice, and which copy of it."""
Unreached = dict[int, list[Segment]]
"""By the key's index: the places its bytes did not reach."""


class Putter:
    """Writes objects for one store."""

    def __init__(self, master: MasterClient, mover: Mover, background: Background, *, verify: bool) -> None:
        self._master = master
        self._mover = mover
        self._background = background
        self._hashing = verify
        self._stats = mover.stats

    async def put(
        self,
        keys: Sequence[bytes],
        memories: Sequence[Memory],
        *,
        terms: Terms,
        depths: Sequence[int],
        started: Callable[[], None] | None,
        deadline: float,
    ) -> list[PutResult | LarderError]:
        """Per key the result or the error. Raises where nothing was stored.

        What was lost with its node is put again, elsewhere, while the deadline allows.
        """
        begun = time.monotonic()
        unreached: Unreached = {}
        answers = await self._attempt(keys, memories, terms, depths, started, deadline, unreached)
        for _ in range(ATTEMPTS - 1):
            lost = [index for index, answer in enumerate(answers) if isinstance(answer, WriteFailed)]
            if not lost or time.monotonic() >= deadline:
                break
            self._stats.add("put_retries", len(lost))
            try:
                again = await self._attempt(
                    [keys[index] for index in lost],
                    [memories[index] for index in lost],
                    terms,
                    [depths[index] for index in lost] if depths else (),
                    None,
                    deadline,
                    {},
                )
            except LarderError:
                break  # the others were stored; the answers say why these were not
            for index, answer in zip(lost, again, strict=True):
                if isinstance(answer, PutResult):  # otherwise the first error says more: a lost node, not a full one
                    answers[index] = answer
        if unreached:
            await self._explain(answers, unreached, deadline)
        self._count(memories, answers, time.monotonic() - begun)
        return answers

    async def _explain(self, answers: list[PutResult | LarderError], unreached: Unreached, deadline: float) -> None:
        """Adds to the errors where the bytes should have gone, and why they did not get there."""
        places = {index: places for index, places in unreached.items() if isinstance(answers[index], WriteFailed)}
        for index, why in (await self._mover.explain(places, deadline)).items():
            error = answers[index]
            if isinstance(error, WriteFailed):
                said = f"{error.args[0]}: {why}"
                answers[index] = WriteFailed(said, key=error.key, node=error.node, remedy=Unreachable.remedy)

    async def _attempt(
        self,
        keys: Sequence[bytes],
        memories: Sequence[Memory],
        terms: Terms,
        depths: Sequence[int],
        started: Callable[[], None] | None,
        deadline: float,
        unreached: Unreached,
    ) -> list[PutResult | LarderError]:
        answers: list[PutResult | LarderError] = [LarderError("not put")] * len(keys)
        writes: list[Write] = []
        try:
            until = deadline
            for batch in batches(len(keys)):
                opened, batch_until = await self._start(keys, memories, batch, terms, depths, deadline, answers)
                writes += opened
                until = min(until, batch_until)
            if started is not None:
                started()
            await self._write(writes, min(until, deadline - END_SHARE * max(0.0, deadline - time.monotonic())))
            await self._end(writes, deadline, answers, unreached)
        except BaseException:
            self._background.abort([write.write_id for write in writes])
            raise
        return answers

    # ---- start -----------------------------------------------------------------------------------

    async def _start(
        self,
        keys: Sequence[bytes],
        memories: Sequence[Memory],
        batch: slice,
        terms: Terms,
        depths: Sequence[int],
        deadline: float,
        answers: list[PutResult | LarderError],
    ) -> tuple[list[Write], float]:
        sizes = [memory.length for memory in memories[batch]]
        starting = asyncio.ensure_future(
            self._master.put_start(keys[batch], sizes, terms, depths=depths[batch], deadline=deadline)
        )
        try:
            begun = await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._background.abort_started(starting)  # only the answer names the writes
            raise
        writes: list[Write] = []
        for index, result, write_id, slices in zip(
            range(batch.start, batch.stop), begun.results, begun.write_ids, begun.slices, strict=True
        ):
            key, size = keys[index], memories[index].length
            if result == _OK and sum([part.length for part in slices]) == size:
                writes.append(Write(index, key, memories[index], slices, write_id))
            elif result == _EXISTS:
                answers[index] = EXISTED
            elif result == _NO_SPACE:
                said = f"no room for {size} bytes" + (f": {begun.shortage}" if begun.shortage else "")
                answers[index] = NoSpace(said, key=key, remedy=begun.remedy or None)
            elif result == _TOO_LARGE:
                answers[index] = TooLarge(f"no room for {size} bytes even in empty pools", key=key)
            elif result == _PIN_REFUSED:
                answers[index] = PinRefused(f"no room to pin {size} bytes", key=key)
            else:
                answers[index] = WriteFailed(f"the master's answer is not understood: result {result}", key=key)
        return writes, begun.until

    # ---- write -----------------------------------------------------------------------------------

    async def _write(self, writes: Sequence[Write], until: float) -> None:
        bundles: Bundles[_CopyWrite] = Bundles(self._mover)
        by_segment: dict[bytes, Bundle[_CopyWrite] | None] = {}
        for write in writes:
            start = 0
            for number, part in enumerate(write.slices):
                memory = write.memory.cut(start, part.length)
                start += part.length
                hashing = self._hashing  # with the first copy that can be written
                for index, (segment, offset) in enumerate(part.copies):
                    token = segment.shm_token
                    if token not in by_segment:
                        transport = self._mover.way_to(segment)
                        by_segment[token] = None if transport is None else bundles.to(segment, transport)
                    bundle = by_segment[token]
                    if bundle is None:
                        write.fail(number, index, Fault.UNREACHABLE)
                        continue
                    bundles.add(bundle, Move(memory, offset, hashing=hashing), (write, number, index))
                    hashing = False
        await bundles.run(lambda bundle: self._write_bundle(bundle, until))
        if self._hashing:
            await self._hash_rest(writes)

    async def _write_bundle(self, bundle: Bundle[_CopyWrite], until: float) -> None:
        faults = await bundle.transport.write(bundle.segment, bundle.moves, until)
        self._mover.count("written", bundle, faults)
        for move, (write, number, copy), fault in zip(bundle.moves, bundle.purposes, faults, strict=True):
            if fault is not None:
                write.fail(number, copy, fault)
            elif move.hashing:
                write.checksums[number] = move.checksum

    async def _hash_rest(self, writes: Sequence[Write]) -> None:
        """Checksums of slices whose first copy failed while another did not."""
        for write in writes:
            if not write.failed or write.is_lost():
                continue
            start = 0
            for number, part in enumerate(write.slices):
                if not write.checksums[number]:
                    pieces = write.memory.cut(start, part.length).pieces
                    (write.checksums[number],) = await self._mover.copiers.run([partial(checksum, pieces)])
                start += part.length

    # ---- end -------------------------------------------------------------------------------------

    async def _end(
        self, writes: Sequence[Write], deadline: float, answers: list[PutResult | LarderError], unreached: Unreached
    ) -> None:
        written: list[Write] = []
        lost: list[int] = []
        for write in writes:
            if write.failed and write.is_lost():
                answers[write.index] = write.lost(deadline)
                if segments := write.unreached():
                    unreached[write.index] = segments
                lost.append(write.write_id)
            else:
                written.append(write)
        self._background.abort(lost)
        for batch in batches(len(written)):
            part = written[batch]
            failed = [(index, number, copy) for index, write in enumerate(part) for number, copy, _ in write.failed]
            checksums = [write.checksums for write in part]
            try:
                ended = await self._master.put_end(
                    [write.write_id for write in part], checksums, failed, deadline=deadline
                )
            except LarderError as error:
                for write in part:
                    answers[write.index] = type(error)(error.args[0], key=write.key)
                continue
            for write, result, copies in zip(part, ended.results, ended.copies, strict=True):
                answers[write.index] = write.ended(result, copies)

    def _count(self, memories: Sequence[Memory], answers: Sequence[PutResult | LarderError], seconds: float) -> None:
        stored = [
            memory.length
            for memory, answer in zip(memories, answers, strict=True)
            if type(answer) is PutResult and not answer.existed
        ]
        errors = sum([isinstance(answer, LarderError) for answer in answers]) if len(stored) < len(answers) else 0
        self._stats.add("puts", len(answers))
        self._stats.add("put_calls")
        self._stats.add("put_seconds", seconds)
        self._stats.add("puts_stored", len(stored))
        self._stats.add("puts_existed", len(answers) - len(stored) - errors)
        self._stats.add("put_errors", errors)
        self._stats.add("put_bytes", sum(stored))
