"""The scheduler's questions to the store: when they are asked, and how long an answer counts.

A lookup starts when a request arrives and is asked for its answer until it has one or its time is up; then the engine
computes (invariant 16). An answer is used only while the store holds what it found, so that nothing goes before it is
loaded. No vLLM, no torch: lookups are futures, the clock is handed in, and nothing is waited for but GLANCE_S.
"""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_futures
from dataclasses import dataclass
from typing import Final

from larder.vllm.counts import took
from larder.vllm.keys import Chunk, ChunkPlan
from larder.vllm.lookup import Part
from larder.vllm.shapes import Matcher, Names, Request

ANSWER_TTL_S: Final = 10.0
"""A request that could not be scheduled for longer asks again: what was not there may be there now."""
HOLD_S: Final = 2.0
"""What was found is not evicted for so long: until its load has begun."""
HELD_FOR_S: Final = 0.5
"""An answer counts for so long; the rest of the hold is the load's, which begins in a later step."""
HOLDERS_MAX: Final = 16
"""Requests that hold what they found, and requests that ask again: those whose turn comes next. A long queue would hold
the whole store, and what it holds cannot make room."""
GLANCE_S: Final = 0.003
"""So long an answer is waited for, one a step: the first time that it is asked for, and while the engine has nothing to
compute. Most come in a third of that, if the interpreter lets the thread run that brings them; steps without work keep
it away."""
LOOKUP_KEYS_MAX: Final = 8_192


@dataclass(slots=True, eq=False)
class Lookup:
    """One question, and its answer once there is one: `tokens` from the prompt's start can be loaded."""

    chunks: list[Chunk]
    future: Future[int]
    started: float
    held: bool = False
    waited: bool = False
    answered: float | None = None
    tokens: int | None = None


class Lookups:
    """Asks for one engine's requests."""

    def __init__(
        self,
        plan: ChunkPlan,
        matcher: Matcher,
        *,
        timeout_s: float,
        counts: Counter[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.parts: tuple[Part, ...] = ()
        self._plan = plan
        self._matcher = matcher
        self._timeout_s = timeout_s
        self._counts = counts
        self._clock = clock
        self._holders: list[Lookup] = []
        self._may_wait, self._idle = True, False

    def next_step(self, *, idle: bool) -> None:
        """A step is planned: in the next one, too, one answer may be waited for; `idle`: one that was before, too."""
        self._may_wait, self._idle = True, idle

    def start(self, request: Request, names: Names) -> Lookup | None:
        """Ask for a request that has just come, maybe long before its turn; None: its names are not known yet."""
        self._holders = [lookup for lookup in self._holders if self._is_certain(lookup)]
        return self._start(request, names, hold=len(self._holders) < HOLDERS_MAX)

    def _start(self, request: Request, names: Names, *, hold: bool) -> Lookup | None:
        now = self._clock()
        chunks: list[Chunk] = []
        if self.parts and self._matcher.ready():
            if (hashes := names.hashes()) is None:
                return None
            chunks = self._plan.chunks(
                hashes, known_tokens=request.num_tokens, prompt_tokens=request.num_prompt_tokens
            )[: LOOKUP_KEYS_MAX // len(self.parts)]
        if not chunks:
            return Lookup([], Future(), now, answered=now, tokens=0)
        lookup = Lookup(chunks, self._matcher.match(self.parts, chunks, HOLD_S if hold else 0.0), now, held=hold)
        lookup.future.add_done_callback(lambda _: self._answered(lookup))
        if hold:
            self._holders.append(lookup)
        return lookup

    def _answered(self, lookup: Lookup) -> None:
        lookup.answered = self._clock()  # on whatever thread: to be looked at later

    def over(self, lookup: Lookup) -> None:
        """The request had its turn, or is gone."""
        lookup.future.cancel()
        if lookup in self._holders:
            self._holders.remove(lookup)

    def turn(
        self, request: Request, names: Names, lookup: Lookup | None, local_tokens: int
    ) -> tuple[Lookup | None, int | None]:
        """The request's turn: the tokens that the store adds to the `local_tokens` of the engine; None: not known yet.

        What was found before may have been evicted meanwhile: it counts where it is held, else it is asked for again.
        """
        if lookup is None or (lookup.answered is not None and self._clock() - lookup.answered > ANSWER_TTL_S):
            lookup = self._start(request, names, hold=True)
        if lookup is None:
            return None, None
        if not lookup.chunks or lookup.chunks[-1].end <= local_tokens:
            return lookup, 0
        if lookup.tokens is None:
            if self._may_wait and (self._idle or not lookup.waited):
                lookup.waited, self._may_wait = True, False
                wait_futures([lookup.future], timeout=GLANCE_S)
            self._take_answer(lookup)
        if lookup.tokens is None:
            return lookup, None
        if lookup.tokens <= local_tokens:
            return lookup, 0
        if self._is_certain(lookup):
            return lookup, lookup.tokens - local_tokens
        if self._asking() < HOLDERS_MAX:
            self.over(lookup)
            lookup = self._start(request, names, hold=True)
        return lookup, None if lookup is None or lookup.chunks else 0

    def _is_certain(self, lookup: Lookup) -> bool:
        """Whether what it found, or will find, is held long enough to be loaded."""
        return lookup.held and (lookup.answered is None or self._clock() - lookup.answered <= HELD_FOR_S)

    def _asking(self) -> int:
        return sum(lookup.answered is None for lookup in self._holders)

    def _take_answer(self, lookup: Lookup) -> None:
        if lookup.future.done():
            matched = 0
            self._counts[took("lookup_seconds", (lookup.answered or self._clock()) - lookup.started)] += 1
            if lookup.future.cancelled() or lookup.future.exception() is not None:
                self._counts["lookup_failures"] += 1
            else:
                matched = lookup.future.result()
            lookup.tokens = lookup.chunks[matched - 1].end if matched else 0
        elif self._clock() - lookup.started >= self._timeout_s:
            lookup.tokens = 0
            lookup.future.cancel()
            self._matcher.timed_out()
            self._counts["lookup_failures"] += 1
            self._counts[took("lookup_seconds", self._clock() - lookup.started)] += 1
