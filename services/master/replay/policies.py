"""Three ways to keep blocks: the master's core, plain recency (LRU), and the optimum that knows the future.

A request looks all its blocks up and puts those it missed. A block is served when it and all before it are found: the
rest is computed. The core is `Master.step` with one node, whose one segment has room for exactly so many blocks;
nothing is leased, and eviction begins when a put waits for room. No time passes.
"""

import heapq
import sys
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from services.master.core import messages as m
from services.master.core.allocator import ALIGN_BYTES
from services.master.core.master import Master
from services.master.core.messages import Result
from services.master.core.tables import Config

Blocks = list[int]
"""A request's, in order and each once: numbers of 64 bits, equal where the prefix up to and including them is."""
NEVER: Final = sys.maxsize
TICKS_MAX: Final = 10_000  # in a row without an answer from the master: it would be stuck


class Policy(Protocol):
    def request(self, blocks: Blocks) -> int:
        """Serves a request and keeps what it computes; returns how many blocks were served."""


class Lru:
    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._cache: OrderedDict[int, None] = OrderedDict()

    def request(self, blocks: Blocks) -> int:
        cache = self._cache
        served = _run([block in cache for block in blocks])
        for block in blocks:
            if block not in cache and len(cache) == self._capacity:
                cache.popitem(last=False)
            cache[block] = None
            cache.move_to_end(block)
        return served


class Optimum:
    """When room is needed, the block whose next use is furthest ahead goes."""

    def __init__(self, capacity: int, next_uses: Sequence[int]) -> None:
        """`next_uses`: of every use in the trace, as `next_uses()` has it."""
        self._capacity = capacity
        self._next_uses = next_uses
        self._index = 0
        self._cache: dict[int, int] = {}  # block -> next use
        self._heap: list[tuple[int, int]] = []  # (-next use, block); entries that are out of date are skipped

    def request(self, blocks: Blocks) -> int:
        cache, heap = self._cache, self._heap
        served = _run([block in cache for block in blocks])
        for block in blocks:
            while block not in cache and len(cache) == self._capacity:
                due, last = heapq.heappop(heap)
                if cache.get(last) == -due:
                    del cache[last]
            cache[block] = self._next_uses[self._index]
            heapq.heappush(heap, (-cache[block], block))
            self._index += 1
        return served


def next_uses(uses: Sequence[int], lengths: Iterable[int]) -> Sequence[int]:
    """For each use the number of the request that uses that block next, or NEVER. `lengths`: uses of each request."""
    following: dict[int, int] = {}
    numbers = array("q", (number for number, length in enumerate(lengths) for _ in range(length)))
    found = array("q", bytes(8 * len(uses)))
    for index in range(len(uses) - 1, -1, -1):
        found[index] = following.get(uses[index], NEVER)
        following[uses[index]] = numbers[index]
    return found


class Larder:
    """The master's core and a node that acknowledges at once, with room for `capacity` blocks."""

    def __init__(self, capacity: int) -> None:
        self._core = Master(Config(lease_ms=0, high_watermark=1.0), epoch=1)
        self._calls = 0
        self._call(m.Hello(1, "node", 1, 0, "host", [m.SegmentInfo(capacity * ALIGN_BYTES)]), answered=False)
        self._call(m.InventoryEnd(1), answered=False)

    def request(self, blocks: Blocks) -> int:
        keys = [block.to_bytes(8) for block in blocks]
        results = self._call(m.Lookup(self._next(), keys)).results
        missing = [key for key, result in zip(keys, results, strict=True) if result is Result.MISS]
        if missing:
            sizes, depths = [ALIGN_BYTES] * len(missing), range(len(keys) - len(missing), len(keys))
            call = self._next()
            start = m.PutStart(call, call.to_bytes(16), missing, sizes, 1, depths, wait_ms=1)
            write_ids = self._call(start).write_ids
            call, ones = self._next(), [1] * len(missing)
            ended = self._call(m.PutEnd(call, call.to_bytes(16), write_ids, ones, ones))
            assert ended.copies == ones  # noqa: S101  (else it would have measured something else)
        return _run([result is Result.OK for result in results])

    def _next(self) -> int:
        self._calls += 1
        return self._calls

    def _call(self, command: m.Command, *, answered: bool = True) -> Any:
        answer = None
        for _ in range(TICKS_MAX):
            effects = deque(self._core.step(0, command))
            while effects:
                effect = effects.popleft()
                if isinstance(effect, m.Record | m.Forget):
                    effects.extend(self._core.step(0, m.Ack(effect.stream, 1, [effect.command_id])))
                elif isinstance(effect, m.Reply):
                    answer = effect.answer
            if answer is not None or not answered:
                assert not isinstance(answer, m.Rejected), answer  # noqa: S101
                return answer
            command = m.Tick()  # eviction goes on in the next step
        raise RuntimeError("the master does not answer")


def _run(found: Sequence[bool]) -> int:
    return found.index(False) if False in found else len(found)
