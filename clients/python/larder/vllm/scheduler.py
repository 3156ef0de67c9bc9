"""The scheduler's half: what to load, what to save. `answers.py` asks the store, `pins.py` holds what is being saved.

No vLLM, no torch, no waiting: requests, block tables and the block pool come in by shape, the clock is handed in.
"""

import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

from larder.vllm.answers import Lookup, Lookups
from larder.vllm.jobs import SKIP, Adapter, ChunkBlocks, LoadJob, SaveJob, StepPlan, WorkerReport
from larder.vllm.keys import NAMESPACE_BYTES, Chunk, ChunkPlan, moved
from larder.vllm.lookup import Part
from larder.vllm.pins import Pins
from larder.vllm.shapes import Matcher, Names, OwnHashes, Pool, Request

NULL_BLOCK: Final = 0
"""vLLM's placeholder in a block table: no memory of the request's own."""

DOUBT_STEPS: Final = 16
"""More steps than an engine has under way at once: after so many it has heard what became of a step."""


@dataclass(slots=True)
class _Tracked:
    request: Request
    names: Names
    arrived: float
    lookup: Lookup | None = None
    local_tokens: int = 0  # the engine's own hit when it last asked
    stored_tokens: int = 0  # saved, or loaded: nothing to save before this
    load_failed: bool = False
    admitted_at: int = -1  # the step in which it was given blocks, with nothing for us to load
    save_from: int = 0  # the step before which nothing of it is saved
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
        self._workers = workers
        self._lookup_timeout_s = lookup_timeout_s
        self._consumer = consumer
        self._producer = producer
        self._naming = naming
        self._clock = clock
        self._namespaces: tuple[bytes, ...] = ()
        self._weights: bytes | None = b""
        self._requests: dict[str, _Tracked] = {}
        self._loads: list[LoadJob] = []
        self._pins: Pins | None = None
        self._steps = 0
        self._turns: set[str] = set()  # requests whose turn it was in this step, and that got no blocks yet
        self._counts: Counter[str] = Counter()
        self._lookups = Lookups(plan, matcher, timeout_s=lookup_timeout_s, counts=self._counts, clock=clock)

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
        self._lookups.parts = ()
        if weights is not None:
            windows = self._group_windows * (len(self._namespaces) // len(self._group_windows))
            parts = zip(self._namespaces, windows, strict=True)
            self._lookups.parts = tuple(Part(moved(name, weights), window) for name, window in parts)

    @property
    def weights(self) -> bytes | None:
        """What they are called."""
        return self._weights

    @property
    def shared_name(self) -> str:
        """Short for all namespaces: engines that share what they compute show the same. Empty: none are known yet."""
        names = b"".join(part.namespace for part in self._lookups.parts)
        return hashlib.blake2b(names, digest_size=8).hexdigest() if names else ""

    def renew(self) -> None:
        """The weights may have changed, nobody can say to what: this engine shares with itself alone from now on."""
        self.set_weights(secrets.token_bytes(NAMESPACE_BYTES))

    def bind_pool(self, pool: Pool) -> None:
        """vLLM's block pool, in which blocks under a save are held."""
        self._pins = Pins(pool, self._workers, self._clock)

    def beside_saves(self, reset: Callable[[], bool]) -> Callable[[], bool]:
        """The pool's own reset, not hindered by saves under way: they keep their blocks, which nobody finds then."""

        def reset_beside_saves() -> bool:
            with self._pins.aside() if self._pins is not None else nullcontext():
                return reset()

        return reset_beside_saves

    # ---- lookups

    def arrived(self, request: Request) -> None:
        """A request is new: start its lookup while it waits for its turn."""
        tracked = self._track(request)
        if self._consumer and not request.skip_reading_prefix_cache and tracked.lookup is None:
            tracked.lookup = self._lookups.start(request, tracked.names)

    def external_tokens(self, request: Request, local_tokens: int) -> int | None:
        """Tokens the store can add to the `local_tokens` the engine has; None: not known yet, ask again."""
        tracked = self._track(request)
        tracked.local_tokens = local_tokens
        tracked.mixed |= local_tokens > 0 and tracked.names.suspect
        tokens = self._asked(tracked, local_tokens)
        if tokens is not None:
            self._turns.add(request.request_id)
        return tokens

    def _asked(self, tracked: _Tracked, local_tokens: int) -> int | None:
        request = tracked.request
        if not self._consumer or request.skip_reading_prefix_cache or tracked.load_failed or tracked.mixed:
            return 0
        tracked.lookup, tokens = self._lookups.turn(request, tracked.names, tracked.lookup, local_tokens)
        if tracked.lookup is None:  # its names are not known yet
            return None if self._clock() - tracked.arrived < self._lookup_timeout_s else 0
        return tokens

    # ---- loads

    def allocated(self, request: Request, block_ids: Sequence[Sequence[int]], external_tokens: int) -> None:
        """Blocks were given to a request; `external_tokens` of them are to be loaded (0: none)."""
        tracked = self._track(request)
        if request.request_id in self._turns and external_tokens == 0:
            tracked.admitted_at = self._steps
        self._turns.discard(request.request_id)
        lookup, tracked.lookup = tracked.lookup, None
        if lookup is not None:
            self._lookups.over(lookup)
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
        starving, self._turns = bool(self._turns), set()
        self._steps += 1
        self._lookups.next_step(idle=not scheduled)
        if self._pins is None:
            return plan
        plan.given_up = self._pins.give_way(starving=starving)
        room = self._pins.room() if self._producer and self._lookups.parts else 0
        jobs: dict[tuple[bool, bool, Adapter | None], list[ChunkBlocks]] = {}
        offered: set[bytes] = set()  # requests of one prompt in one step have the same chunks
        for request_id, tokens in scheduled.items():
            tracked = self._requests.get(request_id)
            if room > 0 and tracked is not None and (table := block_table(request_id)) is not None:
                room = self._offer(tracked, tokens, table, jobs, offered, room)
        for (recheck, announce, adapter), chunks in jobs.items():
            job = self._pins.hold(i for chunk in chunks for group in chunk.blocks for i in group)
            plan.saves.append(SaveJob(job, tuple(chunks), recheck, announce, adapter))
        return plan

    def _offer(
        self,
        tracked: _Tracked,
        scheduled: int,
        table: Sequence[Sequence[int]],
        jobs: dict[tuple[bool, bool, Adapter | None], list[ChunkBlocks]],
        offered: set[bytes],
        room: int,
    ) -> int:
        """Adds a request's new chunks to the jobs, as many as there is room to hold; the room left.

        What is not offered now is offered later, if the request still has it then.
        """
        request, hashes = tracked.request, tracked.names.hashes()
        if hashes is None or tracked.mixed:
            return room
        computed = request.num_computed_tokens
        if tracked.admitted_at == self._steps - 1 and computed >= tracked.local_tokens + self._plan.block_tokens:
            # Another connector loads the rest within this step (MultiConnector), and says afterwards if that failed.
            tracked.save_from = self._steps + DOUBT_STEPS
        if self._steps < tracked.save_from:
            return room
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
            if any(blocks) and chunk.block_hash not in offered:
                room -= sum(map(len, blocks))
                if room < 0:
                    return 0
                offered.add(chunk.block_hash)
                # The prefill half of a pair answers with one token, and then the other half asks for these.
                announce = request.max_tokens == 1 and chunk.start < request.num_prompt_tokens
                kind = (chunk.end <= computed, announce, tracked.names.adapter)
                jobs.setdefault(kind, []).append(ChunkBlocks(chunk.block_hash, self._plan.depth(chunk), blocks))
            tracked.stored_tokens = chunk.end
        return room

    # ---- what came of it

    def report(self, report: WorkerReport) -> None:
        """Let go of blocks whose saves ended; a request whose load failed computes, and is not looked up again."""
        for job, workers in report.saves_done.items():
            assert self._pins is not None  # noqa: S101  # a job exists only where a pool was bound
            self._pins.done(job, workers, refused=job in report.refused)
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
            self._lookups.over(tracked.lookup)

    def forget_lookups(self) -> None:
        """Answers no longer hold, say because the store was emptied."""
        for tracked in self._requests.values():
            tracked.lookup = None

    def take_counts(self) -> dict[str, float]:
        """What was asked and promised since it was last asked."""
        counts: dict[str, float] = dict(self._counts)
        self._counts.clear()
        return counts

    @property
    def saving(self) -> bool:
        """Whether blocks are held for saves: the engine must go on stepping to hear of their end."""
        return bool(self._pins)

    def frees_soon(self) -> bool:
        """Whether a save holds blocks that nobody else does: worth waiting for before preempting a request."""
        return self._pins is not None and self._pins.frees_soon()

    def _track(self, request: Request) -> _Tracked:
        tracked = self._requests.get(request.request_id)
        if tracked is None:
            tracked = self._requests[request.request_id] = _Tracked(request, self._naming(request), self._clock())
        return tracked
