"""Doubles for the connector's neighbours: a store in a dict, and an engine's requests, block tables and block pool."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest
from larder.errors import DataLost
from larder.stats import Stats
from larder.vllm.jobs import StepPlan, WorkerReport
from larder.vllm.keys import Chunk, ChunkPlan
from larder.vllm.link import StoreLink
from larder.vllm.lookup import Part
from larder.vllm.scheduler import StoreScheduler

BLOCK = 16
NAMES = (b"a" * 16,)


@dataclass
class Request:
    request_id: str
    num_prompt_tokens: int
    max_tokens: int = 1
    num_tokens: int = 0
    num_computed_tokens: int = 0
    skip_reading_prefix_cache: bool = False
    seed: int = 0
    block_hashes: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.grow(self.num_prompt_tokens)

    def grow(self, tokens: int) -> None:
        self.num_tokens += tokens
        for i in range(len(self.block_hashes), self.num_tokens // BLOCK):
            self.block_hashes.append(bytes([self.seed]) + i.to_bytes(31))


@dataclass
class Block:
    block_id: int
    ref_cnt: int = 0


class Pool:
    def __init__(self, blocks: int) -> None:
        self.blocks = [Block(i) for i in range(blocks)]

    def touch(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            block.ref_cnt += 1

    def get_num_free_blocks(self) -> int:
        return sum(block.ref_cnt == 0 for block in self.blocks)

    def free_blocks(self, ordered_blocks: Iterable[Block]) -> None:
        for block in ordered_blocks:
            block.ref_cnt -= 1
            assert block.ref_cnt >= 0


class Matcher:
    def __init__(self) -> None:
        self.asked: list[tuple[list[bytes], Future[int]]] = []
        self.parts: Sequence[Part] = ()
        self.holds: list[float] = []
        self.up = True
        self.timeouts = 0

    def ready(self) -> bool:
        return self.up

    def match(self, parts: Sequence[Part], chunks: Sequence[Chunk], hold_s: float) -> Future[int]:
        self.parts = parts
        self.holds.append(hold_s)
        self.asked.append(([chunk.block_hash for chunk in chunks], Future()))
        return self.asked[-1][1]

    def timed_out(self) -> None:
        self.timeouts += 1


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A scheduler, what it is connected to, and block tables by request."""

    def __init__(
        self,
        *,
        consumer: bool = True,
        producer: bool = True,
        chunk_blocks: int = 2,
        blocks: int = 1000,
        groups: int = 1,
        names: Sequence[bytes] = NAMES,
        workers: int = 1,
    ) -> None:
        self.matcher, self.pool, self.clock = Matcher(), Pool(blocks), Clock()
        self.tables: dict[str, list[list[int]]] = {}
        self.scheduler = StoreScheduler(
            ChunkPlan(chunk_blocks * BLOCK, BLOCK, BLOCK),
            group_block_tokens=[BLOCK] * groups,
            group_windows=[None] * groups,
            matcher=self.matcher,
            workers=workers,
            lookup_timeout_s=1.0,
            consumer=consumer,
            producer=producer,
            clock=self.clock,
        )
        self.scheduler.bind_pool(self.pool)
        self.scheduler.set_namespaces(names)

    def answer(self, matched: int) -> None:
        self.matcher.asked[-1][1].set_result(matched)

    def step(self, **scheduled: int) -> StepPlan:
        return self.scheduler.step(scheduled, self.tables.get)

    def done(self, plan: StepPlan, workers: int = 1) -> None:
        self.scheduler.report(WorkerReport({job.job_id: workers for job in plan.saves}))

    def held(self) -> int:
        return sum(block.ref_cnt for block in self.pool.blocks)


@dataclass
class Put:
    copies: int = 1
    existed: bool = False


class DictStore:
    """Awaitable store over `objects`. `hold` makes reads and writes wait; `fail` makes every call raise."""

    def __init__(self) -> None:
        self.objects: dict[bytes, bytes] = {}
        self.corrupt: set[bytes] = set()
        self.refused: set[bytes] = set()
        self.held: set[bytes] = set()
        self.calls: list[tuple[str, int]] = []
        self.depths: dict[bytes, int] = {}
        self.fail: Exception | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self.hold_start = asyncio.Event()
        self.hold_start.set()
        self.closed = False
        self.transport = "shm"
        self._stats = Stats()

    def _enter(self, name: str, keys: Sequence[bytes]) -> None:
        self.calls.append((name, len(keys)))
        if self.fail is not None:
            raise self.fail

    async def match(self, keys: Sequence[bytes], wait_s: float = 0.0, hold_s: float = 0.0) -> int:
        self._enter("match", keys)
        await self.hold.wait()
        matched = next((i for i, key in enumerate(keys) if key not in self.objects), len(keys))
        if hold_s:
            self.held.update(keys[:matched])
        return matched

    async def exists(self, keys: Sequence[bytes]) -> list[bool]:
        self._enter("exists", keys)
        return [key in self.objects for key in keys]

    async def put_many(
        self,
        keys: Sequence[bytes],
        buffers: Sequence[Sequence[memoryview]],
        *,
        copies: int,
        depths: Sequence[int],
        started: Callable[[], None],
        wait_s: float,
    ) -> list[Any]:
        self._enter("put_many", keys)
        assert wait_s == 0
        self.depths.update(zip(keys, depths, strict=True))
        await self.hold_start.wait()
        started()
        await self.hold.wait()
        results: list[Any] = []
        for key, pieces in zip(keys, buffers, strict=True):
            if key in self.refused:
                results.append(DataLost("refused on purpose", key=key))
                continue
            results.append(Put(copies=copies, existed=key in self.objects))
            if key not in self.objects:
                self.objects[key] = b"".join(pieces)
                self._stats.add(f"written_bytes_{self.transport}", copies * len(self.objects[key]))
        return results

    async def get_many_into(self, keys: Sequence[bytes], buffers: Sequence[Sequence[memoryview]]) -> list[Any]:
        self._enter("get_many_into", keys)
        await self.hold.wait()
        results: list[Any] = []
        for key, pieces in zip(keys, buffers, strict=True):
            if key not in self.objects or key in self.corrupt:
                results.append(DataLost("corrupt on purpose", key=key) if key in self.corrupt else None)
                continue
            data, at = self.objects[key], 0
            assert sum(len(piece) for piece in pieces) >= len(data)
            for piece in pieces:
                part = data[at : at + len(piece)]
                piece[: len(part)] = part
                at += len(part)
            self._stats.add(f"read_bytes_{self.transport}", at)
            results.append(at)
        return results

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def store() -> DictStore:
    return DictStore()


@pytest.fixture
def link(store: DictStore) -> Any:
    async def connect() -> DictStore:
        return store

    link = StoreLink(connect)
    deadline = time.monotonic() + 5
    while not link.ready():
        assert time.monotonic() < deadline, "the probe was not answered"
        time.sleep(0.001)
    store.calls.clear()
    yield link
    link.close()


@pytest.fixture
def new_bench() -> Callable[..., Bench]:
    """Makes a scheduler with doubles around it."""
    return Bench


@pytest.fixture
def new_request() -> Callable[..., Request]:
    """Makes a request: new_request(request_id, prompt_tokens)."""
    return Request
