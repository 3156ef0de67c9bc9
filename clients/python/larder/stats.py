"""What a store counts. Plain numbers in a dict: whoever exports them chooses how (the names suit `larder_client_*`)."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_tally: Final[ContextVar[dict[str, float] | None]] = ContextVar("tally", default=None)


class Stats:
    """Counters that only grow. Counted from the store's loop and from its transfer thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: defaultdict[str, float] = defaultdict(float)

    def add(self, name: str, value: float = 1) -> None:
        with self._lock:
            self._values[name] += value
        tally = _tally.get()
        if tally is not None:
            tally[name] = tally.get(name, 0.0) + value

    def as_dict(self) -> dict[str, float]:
        return dict(self._values)  # atomically: the lock may belong to a thread left behind by a fork


@contextmanager
def tallied(tally: dict[str, float]) -> Iterator[None]:
    """Counts what the calls inside the block, and the tasks they start, do, in a dict of its own as well."""
    token = _tally.set(tally)
    try:
        yield
    finally:
        _tally.reset(token)
