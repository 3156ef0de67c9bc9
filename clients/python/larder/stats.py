"""What a store counts. Plain numbers in a dict: whoever exports them chooses how (the names suit `larder_client_*`)."""

import threading
from collections import defaultdict


class Stats:
    """Counters that only grow. Counted from the store's loop and from its transfer thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: defaultdict[str, float] = defaultdict(float)

    def add(self, name: str, value: float = 1) -> None:
        with self._lock:
            self._values[name] += value

    def as_dict(self) -> dict[str, float]:
        return dict(self._values)  # at one stroke; the lock may be somebody's who stayed behind in a fork
