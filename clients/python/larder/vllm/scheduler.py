"""The scheduler's half: what to look up, what to load, what to save.

No vLLM, no torch, no waiting: requests, block tables and the block pool come in by shape, lookups are futures, the
clock is handed in. A lookup starts when a request arrives and is asked for its answer until it has one or its time is
up; then the engine computes (invariant 16). Blocks under a save are held in vLLM's block pool by a reference of their
own, so that neither a finished, a preempted nor a sliding request can give them away while they are read.
"""

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from larder.vllm.jobs import SKIP, Adapter, ChunkBlocks, LoadJob, SaveJob, StepPlan, WorkerReport
from larder.vllm.keys import NAMESPACE_BYTES, Chunk, ChunkPlan, moved
from larder.vllm.lookup import Part
from larder.vllm.shapes import Matcher, Names, OwnHashes, Pool, Request

logger = logging.getLogger("vllm.larder")

ANSWER_TTL_S: Final = 10.0
"""A request that could not be scheduled for longer asks again: what was there may be gone, and the other way round."""
LOOKUP_KEYS_MAX: Final = 8_192
NULL_BLOCK: Final = 0
"""vLLM's placeholder in a block table: no memory of the request's own."""


@dataclass(slots=True)
class _Lookup:
    chunks: list[Chunk]
    future: Future[int]
    started: float
    answered: float | None = None
    tokens: int = 0


@dataclass(slots=True)
class _Tracked:
    request: Request
    names: Names
    arrived: float
    lookup: _Lookup | None = None
    local_tokens: int = 0  # the engine's own hit when it last asked
    stored_tokens: int = 0  # saved, or loaded: nothing to save before this
    load_failed: bool = False
    mixed: bool = False  # holds KV that other weights computed, or another adapter


class StoreScheduler:
    """Plans lookups, loads and saves for all workers of one engine."""

    def __init__(
        self,
        plan: ChunkPlan,
        *,
        group_block_tokens: Sequence[int],
        group_windows: Sequence[int | None],
        matcher: Matcher,
        workers: int,
        lookup_timeout_s: float,
        consumer: bool,
        producer: bool,
        naming: Callable[[Any], Names] = OwnHashes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._group_block_tokens = tuple(group_block_tokens)
        self._group_windows = tuple(group_windows)
        self._matcher = matcher
        self._workers = workers
        self._lookup_timeout_s = lookup_timeout_s
        self._consumer = consumer
        self._producer = producer
        self._naming = naming
        self._clock = clock
        self._namespaces: tuple[bytes, ...] = ()
        self._weights: bytes | None = b""
        self._parts: tuple[Part, ...] = ()
        self._requests: dict[str, _Tracked] = {}
        self._loads: list[LoadJob] = []
        self._pool: Pool | None = None
        self._pinned: dict[int, tuple[list[int], int]] = {}  # job -> blocks, workers still reading
        self._pinned_blocks = 0
        self._next_job = 0
        self._counts: Counter[str] = Counter()

    def set_namespaces(self, namespaces: Sequence[bytes]) -> None:
        """The namespaces of every worker's every group, worker by worker: an object of each makes one chunk."""
        if len(namespaces) != self._workers * len(self._group_windows):
            raise ValueError(f"{len(namespaces)} namespaces for {self._workers} workers")
        self._namespaces = tuple(namespaces)
        self.set_weights(self._weights)

    def set_weights(self, weights: bytes | None) -> None:
        """What the engine's weights are called from now on; None: not known, and nothing is looked up or saved.

        Requests that hold KV of the weights before are not saved any more: theirs is of both.
        """
        if self._weights is not None and weights != self._weights:
            for tracked in self._requests.values():
                tracked.mixed |= tracked.request.num_computed_tokens > 0
                tracked.stored_tokens = 0
            self.forget_lookups()
        self._weights = weights
        self._parts = ()
        if weights is not None:
            windows = self._group_windows * (len(self._namespaces) // len(self._group_windows))
            self._parts = tuple(Part(moved(n, weights), w) for n, w in zip(self._namespaces, windows, strict=True))

    @property
    def weights(self) -> bytes | None:
        """What they are called."""
        return self._weights

    def renew(self) -> None:
        """The weights may have changed, nobody can say to what: this engine shares with itself alone from now on."""
        self.set_weights(secrets.token_bytes(NAMESPACE_BYTES))

    def bind_pool(self, pool: Pool) -> None:
        """vLLM's block pool, in which blocks under a save are held."""
        self._pool = pool

    # ---- lookups

    def arrived(self, request: Request) -> None:
        """A request is new: start its lookup while it waits for its turn."""
        tracked = self._track(request)
        if self._consumer and not request.skip_reading_prefix_cache and tracked.lookup is None:
            tracked.lookup = self._start_lookup(tracked)

    def external_tokens(self, request: Request, local_tokens: int) -> int | None:
        """Tokens the store can add to the `local_tokens` the engine has; None: not known yet, ask again."""
        tracked = self._track(request)
        tracked.local_tokens = local_tokens
        tracked.mixed |= local_tokens > 0 and tracked.names.suspect
        if not self._consumer or request.skip_reading_prefix_cache:
            return 0
        if tracked.load_failed or tracked.mixed:
            return 0
        now = self._clock()
        lookup = tracked.lookup
        if lookup is None or (lookup.answered is not None and now - lookup.answered > ANSWER_TTL_S):
            lookup = tracked.lookup = self._start_lookup(tracked)
        if lookup is None:
            return None if now - tracked.arrived < self._lookup_timeout_s else 0
        if not lookup.chunks or lookup.chunks[-1].end <= local_tokens:
            return 0
        if lookup.answered is None and not self._take_answer(lookup, now):
            return None
        return max(0, lookup.tokens - local_tokens)

    def _start_lookup(self, tracked: _Tracked) -> _Lookup | None:
        """A lookup under way; None where the request's names are not known yet."""
        request, chunks = tracked.request, list[Chunk]()
        if self._parts and self._matcher.ready():
            if (hashes := tracked.names.hashes()) is None:
                return None
            chunks = self._plan.chunks(
                hashes, known_tokens=request.num_tokens, prompt_tokens=request.num_prompt_tokens
            )[: LOOKUP_KEYS_MAX // len(self._parts)]
        if not chunks:
            return _Lookup([], Future(), self._clock(), answered=self._clock())
        return _Lookup(chunks, self._matcher.match(self._parts, chunks), self._clock())

    def _take_answer(self, lookup: _Lookup, now: float) -> bool:
        if lookup.future.done():
            matched = 0
            if lookup.future.cancelled() or lookup.future.exception() is not None:
                self._counts["lookup_failures"] += 1
            else:
                matched = lookup.future.result()
            lookup.tokens = lookup.chunks[matched - 1].end if matched else 0
        elif now - lookup.started >= self._lookup_timeout_s:
            lookup.future.cancel()
            self._matcher.timed_out()
            self._counts["lookup_failures"] += 1
        else:
            return False
        lookup.answered = now
        return True

    # ---- loads

    def allocated(self, request: Request, block_ids: Sequence[Sequence[int]], external_tokens: int) -> None:
        """Blocks were given to a request; `external_tokens` of them are to be loaded (0: none)."""
        tracked = self._track(request)
        lookup, tracked.lookup = tracked.lookup, None
        if lookup is not None:
            self._counts["requested_tokens"] += max(0, request.num_tokens - tracked.local_tokens)
        if external_tokens == 0:
            return
        if lookup is None:
            raise RuntimeError(f"{external_tokens} tokens to load for {request.request_id}, which none were promised")
        start, end = tracked.local_tokens, tracked.local_tokens + external_tokens
        chunks = tuple(
            ChunkBlocks(c.block_hash, self._plan.depth(c), self._blocks(block_ids, c, start=start, end=end))
            for c in lookup.chunks
            if c.end > start and c.start < end
        )
        self._loads.append(LoadJob(request.request_id, chunks, tracked.names.adapter))
        tracked.stored_tokens = end
        self._counts["hit_tokens"] += external_tokens

    def _blocks(
        self, table: Sequence[Sequence[int]], chunk: Chunk, *, start: int, end: int
    ) -> tuple[tuple[int, ...], ...]:
        """The chunk's block ids in each group; SKIP where a block is outside [start, end) or has no memory."""
        groups = []
        for tokens, ids in zip(self._group_block_tokens, table, strict=True):
            found = tuple(
                ids[i] if start <= i * tokens and (i + 1) * tokens <= end and ids[i] != NULL_BLOCK else SKIP
                for i in range(chunk.start // tokens, chunk.end // tokens)
            )
            groups.append(found if any(i != SKIP for i in found) else ())
        return tuple(groups)

    # ---- saves

    def step(
        self, scheduled: Mapping[str, int], block_table: Callable[[str], Sequence[Sequence[int]] | None]
    ) -> StepPlan:
        """This step's work: `scheduled` tokens per request, computed when the workers come to the saves."""
        plan, self._loads = StepPlan(self._weights or b"", self._loads), []
        if (
            not self._producer
            or not self._parts
            or self._pool is None
            or 2 * self._pinned_blocks > len(self._pool.blocks)
        ):
            return plan  # more than half the pool waits for the store: what is not offered now is offered later
        jobs: dict[tuple[bool, bool, Adapter | None], list[ChunkBlocks]] = {}
        offered: set[bytes] = set()  # requests of one prompt in one step have the same chunks
        for request_id, tokens in scheduled.items():
            tracked = self._requests.get(request_id)
            if tracked is not None and (table := block_table(request_id)) is not None:
                self._offer(tracked, tokens, table, jobs, offered)
        for (recheck, announce, adapter), chunks in jobs.items():
            plan.saves.append(SaveJob(self._pin(self._pool, chunks), tuple(chunks), recheck, announce, adapter))
        return plan

    def _offer(
        self,
        tracked: _Tracked,
        scheduled: int,
        table: Sequence[Sequence[int]],
        jobs: dict[tuple[bool, bool, Adapter | None], list[ChunkBlocks]],
        offered: set[bytes],
    ) -> None:
        request, hashes = tracked.request, tracked.names.hashes()
        if hashes is None or tracked.mixed:
            return
        computed = request.num_computed_tokens
        # Only tokens that are known have a hash: drafts and placeholders do not count, however many are scheduled.
        chunks = self._plan.chunks(
            hashes,
            known_tokens=computed + scheduled,
            prompt_tokens=request.num_prompt_tokens,
            after=tracked.stored_tokens,
        )
        for chunk in chunks:
            blocks = self._blocks(table, chunk, start=chunk.start, end=chunk.end)
            # A group that gave up a block of the chunk (a sliding window) cannot save its part.
            blocks = tuple(() if SKIP in ids else ids for ids in blocks)
            tracked.stored_tokens = chunk.end
            if any(blocks) and chunk.block_hash not in offered:
                offered.add(chunk.block_hash)
                kind = (chunk.end <= computed, chunk.start < request.num_prompt_tokens, tracked.names.adapter)
                jobs.setdefault(kind, []).append(ChunkBlocks(chunk.block_hash, self._plan.depth(chunk), blocks))

    def _pin(self, pool: Pool, chunks: Iterable[ChunkBlocks]) -> int:
        ids = list(dict.fromkeys(i for chunk in chunks for group in chunk.blocks for i in group))
        pool.touch([pool.blocks[i] for i in ids])
        job = self._next_job
        self._next_job += 1
        self._pinned[job] = (ids, self._workers)
        self._pinned_blocks += len(ids)
        return job

    # ---- what came of it

    def report(self, report: WorkerReport) -> None:
        """Let go of blocks whose saves ended; a request whose load failed computes, and is not looked up again."""
        for job, workers in report.saves_done.items():
            ids, left = self._pinned.pop(job)
            if left > workers:
                self._pinned[job] = (ids, left - workers)
                continue
            self._pinned_blocks -= len(ids)
            assert self._pool is not None  # noqa: S101  # a job exists only where a pool was bound
            self._pool.free_blocks(self._pool.blocks[i] for i in reversed(ids))
        for request_id in report.failed_loads:
            if (tracked := self._requests.get(request_id)) is not None:
                tracked.load_failed = True
                tracked.stored_tokens = 0
        if self._weights in report.outdated:
            self.renew()

    def finished(self, request_id: str) -> None:
        """A request is over. Its saves go on: they hold their blocks themselves."""
        tracked = self._requests.pop(request_id, None)
        if tracked is not None and tracked.lookup is not None:
            tracked.lookup.future.cancel()

    def forget_lookups(self) -> None:
        """Answers no longer hold, say because the store was emptied."""
        for tracked in self._requests.values():
            tracked.lookup = None

    def take_counts(self) -> dict[str, float]:
        """What was asked and promised since it was last asked."""
        counts, self._counts = self._counts, Counter()
        return dict(counts)

    @property
    def saving(self) -> bool:
        """Whether blocks are held for saves: the engine must go on stepping to hear of their end."""
        return bool(self._pinned)

    def frees_soon(self) -> bool:
        """Whether a save holds blocks that nobody else does: worth waiting for before preempting a request."""
        pool = self._pool
        return pool is not None and any(pool.blocks[i].ref_cnt == 1 for ids, _ in self._pinned.values() for i in ids)

    def _track(self, request: Request) -> _Tracked:
        tracked = self._requests.get(request.request_id)
        if tracked is None:
            tracked = self._requests[request.request_id] = _Tracked(request, self._naming(request), self._clock())
        return tracked
