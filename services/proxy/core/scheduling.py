"""Which of several fit engines a request goes to: the policies of --scheduling.

A policy sees the engines that can be asked and what is known of the request, and picks one. It remembers no requests,
so its memory is bounded (invariant 12), and has no randomness but the generator handed in.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import xxhash

from services.proxy.core.engine import Address, Engine, Role

BOUND: Final = 1.25  # times the mean load: prefix_affinity passes over engines with more (arXiv:1608.01350)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a policy may know of a request."""

    prompt_tokens: int = 0  # estimated
    prefix: int = 0  # hash of how the prompt begins
    session: str = ""  # empty: none was given
    has_media: bool = False  # images, sounds: their number of tokens is a guess
    model: str = ""  # empty: whichever an engine has
    home: Address | None = None  # the one decode engine that can answer: it has the response that this refers to
    handed_over: bool = True  # False: KV reaches decode through a store only (requests.is_handed_over)


Policy = Callable[[Sequence[Engine], Ask], Engine]
"""Chooses one of the engines, of which there is at least one."""


class Random(Protocol):
    """What power_of_two needs of a random.Random."""

    def sample(self, population: Sequence[Engine], k: int) -> list[Engine]: ...


def make_policy(name: str, random: Random) -> Policy:
    """The policy of that name; raises KeyError if it is not one of POLICIES."""
    return _MAKERS[name](random)


class RoundRobin:
    """In turn: the one asked longest ago, so that engines may come and go."""

    def __init__(self) -> None:
        self._turns = 0
        self._asked: dict[str, int] = {}  # address -> the turn in which the engine was last asked

    def __call__(self, engines: Sequence[Engine], ask: Ask) -> Engine:
        chosen = min(engines, key=lambda engine: self._asked.get(engine.address, 0))
        self._turns += 1
        self._asked[chosen.address] = self._turns
        if len(self._asked) > 2 * len(engines) + 64:
            here = {engine.address for engine in engines}
            self._asked = {address: turn for address, turn in self._asked.items() if address in here}
        return chosen


def least_loaded(engines: Sequence[Engine], ask: Ask) -> Engine:
    """The fewest outstanding prompt tokens of prefill engines, or requests of decode engines."""
    return min(engines, key=lambda engine: (engine.load, engine.requests))


class LeastLoaded:
    """As least_loaded; equals take turns."""

    def __init__(self) -> None:
        self._turn = RoundRobin()

    def __call__(self, engines: Sequence[Engine], ask: Ask) -> Engine:
        least = min((engine.load, engine.requests) for engine in engines)
        return self._turn([engine for engine in engines if (engine.load, engine.requests) == least], ask)


class PowerOfTwo:
    """The less loaded of two drawn at random: nearly as even as least_loaded, and no herd runs to an idle engine."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def __call__(self, engines: Sequence[Engine], ask: Ask) -> Engine:
        drawn = self._random.sample(engines, 2) if len(engines) > 2 else engines
        return least_loaded(drawn, ask)


def prefix_affinity(engines: Sequence[Engine], ask: Ask) -> Engine:
    """The same engine for prompts that begin alike, while its load stays near the mean: bounded rendezvous hashing."""
    bound = _bound(engines, ask)
    ranked = sorted(engines, key=lambda engine: _weight(engine, ask.prefix), reverse=True)
    return next((engine for engine in ranked if engine.load <= bound), ranked[0])


class Session:
    """The same engine for requests of one session, whatever its load; without a session the least loaded."""

    def __init__(self) -> None:
        self._without = LeastLoaded()

    def __call__(self, engines: Sequence[Engine], ask: Ask) -> Engine:
        if not ask.session:
            return self._without(engines, ask)
        key = xxhash.xxh3_64_intdigest(ask.session.encode(errors="surrogateescape"))
        return max(engines, key=lambda engine: _weight(engine, key))


def _bound(engines: Sequence[Engine], ask: Ask) -> int:
    """The load up to which an engine is taken, so that none exceeds BOUND times the mean by more than one request."""
    own = ask.prompt_tokens if engines[0].role is Role.PREFILL else 1
    return math.floor(BOUND * (sum(engine.load for engine in engines) + own) / len(engines))


def _weight(engine: Engine, key: int) -> int:
    return xxhash.xxh3_64_intdigest(engine.address.encode(), seed=key)


_MAKERS: Final[dict[str, Callable[[Random], Policy]]] = {
    "round_robin": lambda _: RoundRobin(),
    "least_loaded": lambda _: LeastLoaded(),
    "power_of_two": PowerOfTwo,
    "prefix_affinity": lambda _: prefix_affinity,
    "session": lambda _: Session(),
}
POLICIES: Final = tuple(_MAKERS)
