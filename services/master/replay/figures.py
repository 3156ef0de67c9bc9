"""A trace replayed with pools of several sizes: what share of its blocks each policy serves."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from services.master.replay.policies import Blocks, Larder, Lru, Optimum, Policy, next_uses
from services.master.replay.traces import Trace, TraceError

NAMES: Final = ("LRU", "Larder", "optimum")
POINTS: Final = 8
USES_MAX: Final = 50_000_000
"""The optimum is left out for longer traces: it needs them in memory twice over."""
Watched = Callable[[Iterable[Blocks], str, int], Iterable[Blocks]]
"""The same requests, with the progress shown; what is done, and how many there are."""


@dataclass(frozen=True, slots=True)
class Point:
    """One size of pool. Shares of all blocks, 0 to 1; bytes if the size of a token's KV is known."""

    capacity_blocks: int
    capacity_bytes: int | None
    shares: dict[str, float]


@dataclass(frozen=True, slots=True)
class Figures:
    requests: int
    blocks: int
    distinct: int
    block_tokens: int
    unbounded: float
    """What a pool that never evicts serves."""
    points: list[Point]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def unwatched(requests: Iterable[Blocks], what: str, total: int) -> Iterable[Blocks]:
    return requests


def replay(
    trace: Trace, capacities: Sequence[int], watched: Watched = unwatched, block_bytes: int | None = None
) -> Figures:
    blocks = len(trace.uses)
    ahead = next_uses(trace.uses, trace.lengths) if blocks <= USES_MAX else None
    points = []
    for capacity in capacities:
        shares = {}
        for name in NAMES:
            if name != "optimum" or ahead is not None:
                policy = _policy(name, capacity, ahead)
                requests = watched(trace, f"{name}, {capacity:,} blocks", trace.requests)
                shares[name] = sum(map(policy.request, requests)) / blocks
        points.append(Point(capacity, capacity * block_bytes if block_bytes else None, shares))
    unbounded = sum(map(Lru(trace.distinct).request, trace)) / blocks
    return Figures(trace.requests, blocks, trace.distinct, trace.block_tokens, unbounded, points)


def _policy(name: str, capacity: int, ahead: Sequence[int] | None) -> Policy:
    if name == "optimum" and ahead is not None:
        return Optimum(capacity, ahead)
    return Lru(capacity) if name == "LRU" else Larder(capacity)


def default_capacities(trace: Trace) -> list[int]:
    """From what the longest request needs up to where nothing is evicted, evenly on a logarithmic scale."""
    low, high = trace.longest, max(trace.distinct, trace.longest)
    steps = [low * (high / low) ** (step / (POINTS - 1)) for step in range(POINTS)]
    return sorted({_round(value) if value < high else high for value in steps if value > low} | {low})


def _round(value: float) -> int:
    """Rounded up to two digits, for people."""
    unit: int = 10 ** max(0, len(str(int(value))) - 2)
    return -(-int(value) // unit) * unit


def check_capacities(capacities: Sequence[int], trace: Trace) -> None:
    """Raises TraceError."""
    if min(capacities) < trace.longest:
        raise TraceError(
            f"a pool of {min(capacities)} blocks: the longest request has {trace.longest}, give as many at least"
        )
