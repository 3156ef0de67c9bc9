"""The worker's half: starts loads and saves, knows when they ended, and never makes the engine wait for bytes.

Loads: a request is named as received when no transfer into its blocks is possible any more; what did not arrive in
time, or not as it was put, is named bad, and the engine computes it (invariants 1 and 16). Saves: the step of a prefill
that decodes elsewhere ends when the master knows of its puts, or after ANNOUNCE_S, so that whoever asks for them next
finds them on their way; a master that missed that is in doubt, and no later step waits for it until it answers. The
bytes move later, out of blocks that the scheduler holds until the job is reported; it may want them back before.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_futures
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from larder.errors import DataLost, LarderError
from larder.stats import tallied
from larder.vllm.counts import carried, took
from larder.vllm.identity.watch import Watch
from larder.vllm.jobs import SKIP, ChunkBlocks, LoadJob, SaveJob, WorkerReport
from larder.vllm.keys import moved
from larder.vllm.link import AsyncStore, StoreLink
from larder.vllm.transfer import Item, Path, Saved, reason
from larder.vllm.troubles import Troubles

logger = logging.getLogger("vllm.larder")

ANNOUNCE_S: Final = 0.05
UNHEARD_S: Final = 1.0
"""A master that has heard of none of the saves under way for so long is in doubt too, where no step waits for it."""
DRAIN_S: Final = 5.0


@dataclass(slots=True)
class Ended:
    """Loads that ended. `failed` names requests, `bad_blocks` blocks: vLLM wants the one with several KV cache groups,
    where block ids are ambiguous, and the other with one."""

    received: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    bad_blocks: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Load:
    request_id: str
    items: list[Item]
    landed: list[bool]
    started: float
    weights: bytes
    faults: list[str] = field(default_factory=list)
    tally: dict[str, float] = field(default_factory=dict)  # what the store counted


@dataclass(slots=True)
class _Save:
    job: SaveJob
    items: list[Item]
    wanted: int
    saved: Saved
    started: float
    announced: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[Any] | None = None
    given_up: bool = False
    known: int = 0  # objects the master knows of
    tally: dict[str, float] = field(default_factory=dict)  # what the store counted


class StoreWorker:
    """Carries out one worker's jobs."""

    def __init__(
        self,
        link: StoreLink,
        path: Path,
        *,
        namespaces: Sequence[bytes],
        load_timeout_s: float,
        save_timeout_s: float,
        watch: Watch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._path = path
        self._watch = watch or Watch()
        self._watch.readers.add(self)
        self._bases = self._namespaces = tuple(namespaces)
        self._weights = b""
        self._exchanges, self._outdated = self._watch.exchanges, False
        self._told_adapters: dict[int, str] = {}
        self._load_timeout_s = load_timeout_s
        self._save_timeout_s = save_timeout_s
        self._clock = clock
        self._lock = threading.Lock()  # over what the loop's callbacks and the engine's thread both touch: all below
        self._ended = Ended()
        self._report = WorkerReport()
        self._counts: dict[str, float] = {}
        self._saving: dict[Future[None], _Save] = {}
        self._troubles = Troubles(clock)

    def follow(self, weights: bytes) -> None:
        """Use the keys of this step's name for the weights, and none while they are no longer those it was given for.

        Weights that were exchanged in this process wait for another name; the scheduler hears of it and chooses one.
        """
        exchanges = self._watch.exchanges
        if weights != self._weights:
            if self._weights:  # the first name is that of the weights the engine started with
                self._exchanges = exchanges
            with self._lock:
                self._weights = weights
            self._namespaces = tuple(moved(base, weights) for base in self._bases)
        self._outdated = exchanges != self._exchanges
        if self._outdated:
            with self._lock:
                self._report.outdated.add(weights)

    # ---- loads

    def start_loads(self, jobs: Sequence[LoadJob]) -> None:
        """Start loads; `take_ended` names them when they are over."""
        fence = self._path.fence() if jobs else None
        for job in jobs:
            items = self._items(job.chunks)
            load = _Load(job.request_id, items, [False] * len(items), self._clock(), self._weights)
            if self._outdated or not self._watch.may_load(job.adapter):
                self._loaded(load, _exchanged())
                continue
            self._link.call(partial(self._load, load, fence)).add_done_callback(partial(self._loaded, load))

    async def _load(self, load: _Load, fence: Any, store: AsyncStore) -> None:
        with tallied(load.tally):
            async with asyncio.timeout(self._load_timeout_s):
                await self._path.load(store, load.items, fence, load.landed, load.faults)

    def _loaded(self, load: _Load, future: Future[None]) -> None:
        error = _error(future)
        _show_bug(error)
        with self._lock:
            former = load.weights != self._weights  # KV of weights that the engine no longer has
            missing = [item for item, landed in zip(load.items, load.landed, strict=True) if former or not landed]
            self._ended.received.add(load.request_id)
            if missing:
                self._report.failed_loads.add(load.request_id)
                self._ended.failed.add(load.request_id)
                self._ended.bad_blocks.update(block for item in missing for block in item.blocks if block != SKIP)
            size = self._bytes(load.items) - self._bytes(missing)
            by, parts = carried("got_bytes", size, load.tally, "read")
            self._count(
                {"loads": 1, "got_objects": len(load.items) - len(missing), "failed_gets": len(missing), **parts},
                took("load_seconds", self._clock() - load.started, by),
            )
        late = f"they were not there within {self._load_timeout_s:g} s"
        faults = load.faults if error is None and load.faults else [_why(error, late)] * len(missing)
        self._troubles.note("were not loaded, and are computed", faults[: len(missing)], len(load.items))

    # ---- saves

    def save(self, jobs: Sequence[SaveJob]) -> None:
        """Start saves, and wait until the master knows of those that someone asks for next; at most ANNOUNCE_S."""
        if not jobs:
            return
        if self._is_unheard():
            self._link.doubt()
        ready = self._link.ready()
        wanted = [job for job in jobs if ready and not self._outdated and self._watch.may_save(job.adapter)]
        self._drop([job for job in jobs if job not in wanted], refused=not ready)
        fence = self._path.fence() if wanted else None
        waiting_for = []
        for job in wanted:
            items = self._items(job.chunks)
            save = _Save(job, items, len(items), Saved(), self._clock())
            future = self._link.call(partial(self._save, save, fence))
            with self._lock:
                self._saving[future] = save
            future.add_done_callback(partial(self._saved, save))
            if job.announce:
                waiting_for.append(save)
        until = self._clock() + ANNOUNCE_S
        # One that was not announced in time is enough: the master is asked first whether it is there.
        if not all(save.announced.wait(max(0.0, until - self._clock())) for save in waiting_for):
            self._link.doubt()

    def _is_unheard(self) -> bool:
        late = self._clock() - UNHEARD_S
        with self._lock:
            saves = self._saving.values()
            return any(save.started < late for save in saves) and not any(save.known for save in saves)

    def give_up(self, job_ids: Sequence[int]) -> None:
        """End these saves: a request waits for their blocks. They are reported like others, once nothing reads them."""
        with self._lock:
            saves = [save for save in self._saving.values() if save.job.job_id in job_ids]
        for save in saves:
            save.given_up = True
            self._link.soon(partial(_cancel, save))

    async def _save(self, save: _Save, fence: Any, store: AsyncStore) -> None:
        def started(objects: int) -> None:
            save.known += objects
            if save.known >= len(save.items):
                save.announced.set()

        save.task = asyncio.current_task()
        if save.given_up:
            raise asyncio.CancelledError
        async with asyncio.timeout(self._save_timeout_s):
            if save.job.recheck:
                there = await store.exists([item.key for item in save.items])
                known = [item for item, is_known in zip(save.items, there, strict=True) if is_known]
                save.items = [item for item, is_known in zip(save.items, there, strict=True) if not is_known]
                save.saved.existed, save.saved.existed_bytes = len(known), self._bytes(known)
            if save.items:
                with tallied(save.tally):
                    await self._path.save(store, save.items, fence, save.saved, started)

    def _saved(self, save: _Save, future: Future[None]) -> None:
        save.announced.set()
        error, saved = _error(future), save.saved
        _show_bug(error)
        with self._lock:
            self._saving.pop(future, None)
            self._report.saves_done[save.job.job_id] = 1
            if not saved.put and not saved.existed:
                self._report.refused.add(save.job.job_id)
            by, parts = carried("put_bytes", saved.put_bytes, save.tally, "written")
            self._count(
                {
                    "saves": 1,
                    "put_objects": saved.put,
                    "existed_objects": saved.existed,
                    "existed_bytes": saved.existed_bytes,
                    "failed_puts": save.wanted - saved.put - saved.existed,
                    **parts,
                },
                took("save_seconds", self._clock() - save.started, by),
            )
        late = "requests needed their blocks" if save.given_up else f"they took longer than {self._save_timeout_s:g} s"
        faults = [_why(error, late) if error else saved.error] * (save.wanted - saved.put - saved.existed)
        self._troubles.note("were not saved", faults, save.wanted)

    def _drop(self, jobs: Sequence[SaveJob], *, refused: bool) -> None:
        """The store does not answer at the moment, or the names are no longer right: these chunks are not saved."""
        with self._lock:
            for job in jobs:
                self._report.saves_done[job.job_id] = 1
                if refused:
                    self._report.refused.add(job.job_id)
                self._count({"dropped_puts": len(self._items(job.chunks))})

    # ---- both

    def _items(self, chunks: Sequence[ChunkBlocks]) -> list[Item]:
        return [
            Item(self._namespaces[group] + chunk.block_hash, group, blocks, chunk.depth)
            for chunk in chunks
            for group, blocks in enumerate(chunk.blocks)
            if blocks
        ]

    def _bytes(self, items: Sequence[Item]) -> int:
        return sum(map(self._path.object_bytes, items))

    def _count(self, counts: dict[str, float], *events: str) -> None:
        for name, count in (*counts.items(), *((name, 1) for name in events)):
            if count:
                self._counts[name] = self._counts.get(name, 0) + count

    def take_ended(self) -> Ended:
        """Loads that ended since it was last asked."""
        with self._lock:
            ended, self._ended = self._ended, Ended()
        return ended

    def take_report(self) -> WorkerReport | None:
        """What the scheduler must hear of; None: nothing. Asked after every step."""
        self._troubles.say()
        with self._lock:
            if self._watch.adapters != self._told_adapters:
                self._told_adapters = self._report.adapters = dict(self._watch.adapters)
            if self._report == WorkerReport():
                return None
            report, self._report = self._report, WorkerReport()
        return report

    def take_counts(self) -> dict[str, float]:
        """What was done since it was last asked."""
        with self._lock:
            counts, self._counts = self._counts, {}
        return counts

    def quiet(self) -> None:
        """The engine's memory is about to go: end what reads it. RuntimeError if that takes longer than DRAIN_S."""
        with self._lock:
            saves = dict(self._saving)
        self.give_up([save.job.job_id for save in saves.values()])
        if wait_futures(saves, timeout=DRAIN_S).not_done:
            raise RuntimeError("Larder still reads KV blocks for saves that were given up; try again")

    def close(self) -> None:
        """Let puts under way end, for at most DRAIN_S, then close the store."""
        with self._lock:
            saving = set(self._saving)
        wait_futures(saving, timeout=min(DRAIN_S, self._save_timeout_s))
        self._link.close()
        self._troubles.say(last=True)


def _exchanged() -> Future[None]:
    future: Future[None] = Future()
    future.set_exception(DataLost("the weights or the adapter are no longer those that were looked up"))
    return future


def _cancel(save: _Save) -> None:
    if save.task is not None:
        save.task.cancel()


def _why(error: BaseException | None, late: str) -> str:
    """In words; a call that was broken off, by its time or by us, came too late."""
    return late if error is None or isinstance(error, TimeoutError | asyncio.CancelledError) else reason(error)


def _show_bug(error: BaseException | None) -> None:
    if isinstance(error, Exception) and not isinstance(error, (LarderError, OSError, TimeoutError)):
        logger.error("a transfer failed, and should not have in this way", exc_info=error)


def _error(future: Future[None]) -> BaseException | None:
    return asyncio.CancelledError() if future.cancelled() else future.exception()
