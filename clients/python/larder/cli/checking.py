"""How `larder verify` reads every copy of every object: the walk over keys, the reads, and what is made of a bad one.

A copy is bad if its bytes do not match its checksum while a lease keeps them, and the master still has it there when
told: it drops the copy and makes another from a good one. An object removed or evicted meanwhile is no fault. Bounded:
a few batches at a time, each of a few MiB or one slice, and at most the bytes per second that are allowed.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from larder.facts import Facts
from larder.keys import PAGE_KEYS, Page
from larder.memory import fresh_memory
from larder.mover import Bundle, Bundles, Mover
from larder.places import Copy, Fault, Segment
from larder.rpc import BadCopy, MasterClient
from larder.tasks import together
from larder.transports import Move

BATCH_KEYS: Final = 256
CHUNK_BYTES: Final = 16 * 2**20
"""Read at once by each worker; one slice is, however long."""
WORKERS: Final = 4
CALL_S: Final = 30.0
"""What a master may take to answer, its restart included."""
PAUSE_S: Final = 0.5
"""The longest wait for the rate's sake that a lease is kept over."""
TRIES: Final = 3
"""Of a copy that is not reached, or not in time."""
BAD_MAX: Final = 10_000
"""Objects with bad copies whose repair is watched."""
POLL_S: Final = 0.25


class Read(NamedTuple):
    """One copy of one slice."""

    facts: Facts
    number: int
    copy: Copy

    @property
    def length(self) -> int:
        return self.facts.slices[self.number].length

    @property
    def name(self) -> tuple[int, int, bytes, int]:
        """The same for the same bytes at the same place, after a restart of the master too."""
        return self.facts.write_id, self.number, self.copy.segment.shm_token, self.copy.offset


@dataclass
class Tally:
    """What was found. `watched`: by key, the copies that an object had when one of them was bad.
    `unreached`: by node, a segment that could not be read."""

    objects: int = 0
    copies: int = 0
    read_bytes: int = 0
    corrupt: int = 0
    unreachable: int = 0
    silent: int = 0  # copies on nodes that do not answer
    unchecked: int = 0  # copies without a checksum: it is only known that they can be read
    vanished: int = 0
    watched: dict[bytes, int] = field(default_factory=dict)
    unreached: dict[str, Segment] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        return not (self.corrupt or self.unreachable or self.silent)


@dataclass(frozen=True)
class Outcome:
    """What became of the objects with bad copies."""

    repaired: int
    lost: int
    pending: int


class Checker:
    def __init__(
        self,
        master: MasterClient,
        mover: Mover,
        *,
        rate: float | None,
        found: Callable[[Read, Fault], None],
        moved: Callable[[int], None],
    ) -> None:
        """`rate`: bytes a second. `found`: told of each bad copy. `moved`: told of bytes that were read."""
        self.tally = Tally()
        self._master = master
        self._mover = mover
        self._rate = rate
        self._found = found
        self._moved = moved
        self._free_at = 0.0  # when the next read may begin

    async def run(self, prefix: bytes) -> Tally:
        batches: asyncio.Queue[list[bytes] | None] = asyncio.Queue(WORKERS)

        async def feed() -> None:
            async for batch in self._batches(prefix):
                await batches.put(batch)
            for _ in range(WORKERS):
                await batches.put(None)

        await together([feed(), *[self._work(batches) for _ in range(WORKERS)]])
        return self.tally

    async def outcome(self, wait_s: float) -> Outcome:
        """Waits, at most that long, until the objects with bad copies have as many good ones as before."""
        waiting, until = dict(self.tally.watched), time.monotonic() + wait_s
        repaired = lost = 0
        while waiting:
            keys = list(waiting)[:PAGE_KEYS]
            known = await self._master.stat(keys, deadline=time.monotonic() + CALL_S)
            for key, facts in zip(keys, known.objects, strict=True):
                if facts is not None and facts.copies < waiting[key]:
                    continue
                lost += facts is None and waiting[key] == 1
                repaired += facts is not None
                del waiting[key]
            if time.monotonic() >= until:
                break
            if waiting:
                await asyncio.sleep(POLL_S)
        return Outcome(repaired, lost, len(waiting))

    # ---- the walk --------------------------------------------------------------------------------

    async def _batches(self, prefix: bytes) -> AsyncIterator[list[bytes]]:
        page = Page(prefix)
        while page.more:
            batch: list[bytes] = []
            size = 0
            for key, length, copies in await self._master.list(page, deadline=time.monotonic() + CALL_S):
                if batch and (len(batch) == BATCH_KEYS or size + length * copies > CHUNK_BYTES):
                    yield batch
                    batch, size = [], 0
                batch.append(key)
                size += length * copies
            if batch:
                yield batch

    async def _work(self, batches: asyncio.Queue[list[bytes] | None]) -> None:
        while (batch := await batches.get()) is not None:
            await self._check(batch)

    async def _check(self, keys: list[bytes]) -> None:
        """All copies of these, in as many rounds as leases, the rate and copies that are not reached make of it."""
        done: set[tuple[int, int, bytes, int]] = set()
        tries: dict[tuple[int, int, bytes, int], int] = {}
        while True:
            await self._wait_for_the_rate()
            known = await self._master.stat(keys, lease=True, deadline=time.monotonic() + CALL_S)
            try:
                objects = [facts for facts in known.objects if facts is not None]
                reads = [read for facts in objects for read in _reads(facts) if read.name not in done]
                again = await self._round(reads, known.until, done, tries)
            finally:
                if known.lease:
                    await self._master.release([known.lease], deadline=time.monotonic() + CALL_S)
            if not again:
                break
        self.tally.objects += len(objects)
        self.tally.vanished += len(keys) - len(objects)
        self.tally.silent += sum(
            not facts.answers(copy.segment) for facts in objects for part in facts.slices for copy in part.copies
        )

    async def _round(
        self,
        reads: Sequence[Read],
        until: float,
        done: set[tuple[int, int, bytes, int]],
        tries: dict[tuple[int, int, bytes, int], int],
    ) -> bool:
        """Whether another round is needed."""
        again = False
        for chunk in _chunks(reads, min(CHUNK_BYTES, self._rate * PAUSE_S) if self._rate else CHUNK_BYTES):
            now = time.monotonic()
            if now >= until or self._free_at > now + PAUSE_S:
                return True
            await self._take_turn(sum(read.length for read in chunk))
            for read, fault in await self._read(chunk, until):
                is_passing = fault not in (None, Fault.CORRUPT)
                tries[read.name] = tries.get(read.name, 0) + 1
                if is_passing and tries[read.name] < TRIES:
                    again = True
                    continue
                done.add(read.name)
                await self._count(read, fault)
        return again

    async def _count(self, read: Read, fault: Fault | None) -> None:
        tally, facts = self.tally, read.facts
        if fault is None:
            tally.copies += 1
            tally.read_bytes += read.length
            tally.unchecked += not facts.slices[read.number].checksum
            return
        wire = Fault.CORRUPT if fault is Fault.CORRUPT else Fault.UNREACHABLE
        bad = BadCopy(facts.key, read.number, read.copy.segment.id, read.copy.offset, wire)
        dropped = await self._master.report([bad], deadline=time.monotonic() + CALL_S)
        if fault is not Fault.CORRUPT:
            tally.unreachable += 1
            tally.unreached[read.copy.segment.node_id] = read.copy.segment
        elif dropped:
            tally.corrupt += 1
            if len(tally.watched) < BAD_MAX:
                tally.watched.setdefault(facts.key, facts.copies)
        else:
            return  # it had gone meanwhile
        self._found(read, fault)

    # ---- reading ---------------------------------------------------------------------------------

    async def _wait_for_the_rate(self) -> None:
        await asyncio.sleep(max(0.0, self._free_at - time.monotonic()))

    async def _take_turn(self, size: int) -> None:
        now, begin_at = time.monotonic(), self._free_at
        self._free_at = max(begin_at, now) + (size / self._rate if self._rate else 0)
        if begin_at > now:
            await asyncio.sleep(begin_at - now)

    async def _read(self, reads: Sequence[Read], until: float) -> list[tuple[Read, Fault | None]]:
        answers: list[tuple[Read, Fault | None]] = []
        bundles: Bundles[Read] = Bundles(self._mover)
        for read in reads:
            best = self._mover.best([read.copy])
            if best is None:
                answers.append((read, Fault.UNREACHABLE))
                continue
            memory, checksum = fresh_memory(read.length), read.facts.slices[read.number].checksum
            move = Move(memory, read.copy.offset, checksum=checksum, private=True)
            bundles.add(bundles.to(read.copy.segment, best[1]), move, read)

        async def run(bundle: Bundle[Read]) -> None:
            faults = await bundle.transport.read(bundle.segment, bundle.moves, until)
            answers.extend(zip(bundle.purposes, faults, strict=True))

        await bundles.run(run)
        self._moved(sum(read.length for read in reads))
        return answers


def _reads(facts: Facts) -> list[Read]:
    return [Read(facts, number, copy) for number, part in enumerate(facts.slices) for copy in facts.live(part)]


def _chunks(reads: Sequence[Read], most: float) -> list[list[Read]]:
    chunks: list[list[Read]] = [[]]
    size = 0
    for read in reads:
        if chunks[-1] and size + read.length > most:
            chunks.append([])
            size = 0
        chunks[-1].append(read)
        size += read.length
    return chunks if chunks[0] else []
