"""What fails between engine and store, said in one line from time to time: how much, of how much, and why.

The counters have it all, but not every engine shows them, and a line per failure would bury the log. May be called from
any thread.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

logger = logging.getLogger("vllm.larder")

SAY_EVERY_S: Final = 10.0
REASON_MAX: Final = 300


class Troubles:
    """Counts failures of some kinds, and says so: the first at once, later ones together."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tried: Counter[str] = Counter()
        self._reasons: dict[str, Counter[str]] = {}
        self._said_at = clock() - SAY_EVERY_S

    def note(self, what: str, faults: Sequence[str], tried: int) -> None:
        """Of `tried` objects these failed, a reason each. What did not fail is counted too."""
        with self._lock:
            self._tried[what] += tried
            if faults:
                self._reasons.setdefault(what, Counter()).update(fault[:REASON_MAX] for fault in faults)

    def say(self, *, last: bool = False) -> None:
        """Write the lines that are due."""
        with self._lock:
            now = self._clock()
            if not self._reasons or (now - self._said_at < SAY_EVERY_S and not last):
                return
            lines = [
                f"Larder: {reasons.total()} of {self._tried[what]} objects {what}: {_most(reasons)}"
                for what, reasons in self._reasons.items()
            ]
            self._tried.clear()
            self._reasons.clear()
            self._said_at = now
        for line in lines:
            logger.warning("%s", line)


def _most(reasons: Counter[str]) -> str:
    (reason, count), *others = reasons.most_common()
    return f"{reason} ({count} of them)" if others else reason
