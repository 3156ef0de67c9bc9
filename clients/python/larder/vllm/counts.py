"""How the connector writes down what it counts: a number under a name and, after a space each, what tells it apart.

Counts only grow and only add, so workers, steps and engines aggregate by addition. Durations are counts, too, by their
first three digits: what travels from the workers to the front end stays small. No vLLM, no Prometheus.
"""

from collections.abc import Mapping
from typing import Final

SHARED_MEMORY: Final = "shared_memory"
ENGINE: Final = "engine"
NEITHER: Final = "none"
"""Nothing was moved: it all failed, or was there already."""


UP: Final = "up"
"""Not a count: whether the store answered the engine's scheduler, said where that has changed."""


def took(name: str, seconds: float, *transport: str) -> str:
    """The name of one duration's count; `name` ends in _seconds."""
    return " ".join((name, *transport, f"{max(0.0, seconds):.3g}"))


def name_of(key: str) -> str:
    """A count's name without what tells it apart."""
    return key.partition(" ")[0]


def without_seconds(key: str) -> str:
    """A duration's key without the duration."""
    return key.rpartition(" ")[0]


def seconds_of(key: str) -> float:
    """The duration in it."""
    return float(key.rpartition(" ")[2])


def add(counts: dict[str, float], more: Mapping[str, float]) -> None:
    """Adds other counts to these."""
    for key, count in more.items():
        counts[key] = count if key == UP else counts.get(key, 0) + count


def sums(counts: Mapping[str, float]) -> dict[str, float]:
    """By name, for people; durations in seconds."""
    found: dict[str, float] = {}
    for key, count in counts.items():
        name = name_of(key)
        found[name] = found.get(name, 0) + (count * seconds_of(key) if name.endswith("_seconds") else count)
    found.pop(UP, None)
    return {name: round(value, 3) for name, value in found.items() if value}


def carried(name: str, size: int, tally: Mapping[str, float], way: str) -> tuple[str, dict[str, float]]:
    """What carried so many bytes of objects, in a word, and their counts.

    `tally`: what the store counted meanwhile, where `way` is "read" or "written". That has every copy, and what failed.
    """
    engine, shared = tally.get(f"{way}_bytes_engine", 0.0), tally.get(f"{way}_bytes_shm", 0.0)
    by_engine = round(size * engine / (engine + shared)) if engine else 0
    parts = {ENGINE: by_engine, SHARED_MEMORY: size - by_engine}
    by = ENGINE if engine else SHARED_MEMORY if shared else NEITHER
    return by, {f"{name} {transport}": part for transport, part in parts.items() if part}
