"""Blocks held for saves: how many may be, when they must give way, and when the store is not offered any.

A block under a save is held in vLLM's block pool by a reference of its own, so that neither a finished, a preempted nor
a sliding request can give it away while it is read. That must never cost a request (invariant 16): at most half the
pool is held, what is being added counted; where a request waits for blocks that saves alone hold, these saves are given
up; and a store that refused is left alone for a while, twice as long each time. No waiting in here, no vLLM.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from larder.vllm.shapes import Pool

GRACE_MIN_S: Final = 0.05
GRACE_MAX_S: Final = 0.2
GRACE_USUAL: Final = 4
"""A request waits for the blocks of a save this long: so many times what saves took lately, within these bounds. What a
save had begun to write is nobody's for half a minute, so that to give it up costs the store its room."""
GRACE_DOUBTED_S: Final = 0.02
"""The same where the store took nothing the last time."""
BACK_OFF_MIN_S: Final = 0.05
BACK_OFF_MAX_S: Final = 5.0
LOW_SHARE: Final = 16
"""With less than this part of the pool free someone waits for blocks, or will."""


@dataclass(slots=True)
class _Pin:
    blocks: list[int]
    workers: int  # that still read them
    since: float
    refused: bool = False
    given_up: bool = False


class Pins:
    """What is held for the saves of one engine."""

    def __init__(self, pool: Pool, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._workers = workers
        self._clock = clock
        self._pins: dict[int, _Pin] = {}  # by job
        self._held = 0
        self._next_job = 0
        self._usual_s = 0.0  # what a save took lately
        self._back_off_s = 0.0
        self._closed_until = clock()
        self._waited_for = False

    def __bool__(self) -> bool:
        return bool(self._pins)

    def room(self) -> int:
        """How many more blocks may be held now."""
        if self._clock() < self._closed_until:
            return 0
        return max(0, len(self._pool.blocks) // 2 - self._held)

    def hold(self, ids: Iterable[int]) -> int:
        """Hold these blocks for a save; the job's number."""
        blocks = list(dict.fromkeys(ids))
        self._pool.touch([self._pool.blocks[i] for i in blocks])
        job = self._next_job
        self._next_job += 1
        self._pins[job] = _Pin(blocks, self._workers, self._clock())
        self._held += len(blocks)
        return job

    def done(self, job: int, workers: int, *, refused: bool) -> None:
        """So many workers have ended the job; `refused`: the store took nothing of it."""
        pin = self._pins[job]
        pin.workers -= workers
        pin.refused |= refused
        if pin.workers > 0:
            return
        del self._pins[job]
        self._held -= len(pin.blocks)
        self._pool.free_blocks(self._pool.blocks[i] for i in reversed(pin.blocks))
        if pin.refused:
            self._refused()
        else:
            self._back_off_s = 0.0
            self._usual_s += (self._clock() - pin.since - self._usual_s) / 4

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Hold nothing meanwhile: for a call that counts the blocks in use and gives none away."""
        pins = [[self._pool.blocks[i] for i in pin.blocks] for pin in self._pins.values()]
        for blocks in pins:
            self._pool.free_blocks(reversed(blocks))
        try:
            yield
        finally:
            for blocks in pins:
                self._pool.touch(blocks)

    def frees_soon(self) -> bool:
        """Whether a save holds blocks that nobody else does. Who asks waits for blocks."""
        self._waited_for = any(map(self._alone, self._pins.values()))
        return self._waited_for

    def give_way(self, *, starving: bool) -> list[int]:
        """Jobs to give up, because a request waits for their blocks; `done` hears of their end."""
        pool, now = self._pool, self._clock()
        starving |= self._waited_for or LOW_SHARE * pool.get_num_free_blocks() < len(pool.blocks)
        self._waited_for = False
        if not starving:
            return []
        grace_s = min(GRACE_MAX_S, max(GRACE_MIN_S, GRACE_USUAL * self._usual_s))
        if self._back_off_s:
            grace_s = GRACE_DOUBTED_S
        jobs = [
            job
            for job, pin in self._pins.items()
            if not pin.given_up and now - pin.since >= grace_s and self._alone(pin)
        ]
        for job in jobs:
            self._pins[job].given_up = True
        if jobs:
            self._refused()
        return jobs

    def _alone(self, pin: _Pin) -> bool:
        return any(self._pool.blocks[i].ref_cnt == 1 for i in pin.blocks)

    def _refused(self) -> None:
        now = self._clock()
        if now >= self._closed_until:  # what was under way together is refused together: once
            self._back_off_s = min(BACK_OFF_MAX_S, max(BACK_OFF_MIN_S, 2 * self._back_off_s))
            self._closed_until = now + self._back_off_s
