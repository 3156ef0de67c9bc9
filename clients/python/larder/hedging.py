"""When a read has hung for so long that a second one is worth its bytes. Numbers in, numbers out: no clock, no I/O.

As in Dean and Barroso, "The Tail at Scale" (2013): the second read comes after what nearly all reads take, so it costs
little where all is well. A budget bounds it where all is not: a cluster that is slow because it is overloaded must
not be given more (invariant 12).
"""

from bisect import bisect_left, insort
from collections import deque
from typing import Final

SHARE: Final = 0.05
"""Of the bytes read, what may be read twice."""
BURST_BYTES: Final = 64 * 2**20
"""The most that is saved up, also the start: what one node can be left owing (`pump.BYTES_MAX`)."""
DELAY_S_MIN: Final = 5e-3
_QUANTILE: Final = 0.95
_TIMES: Final = 2.0  # the quantile itself would use the whole budget up while all is well
_SAMPLES_MIN: Final = 20
_SAMPLES_MAX: Final = 128
_SLOW_S: Final = 0.1
_SLOW_BYTES_PER_S: Final = 100e6


class Hedging:
    """What one store has learnt from its recent reads."""

    def __init__(self) -> None:
        self._recent: dict[int, _Recent] = {}  # by order of magnitude: a class spans a factor of four in bytes
        self._budget_bytes = float(BURST_BYTES)

    def delay_s(self, size_bytes: int) -> float:
        """How long a read of that size may take before it is hedged: at most as long as on a slow network."""
        most_s = _SLOW_S + size_bytes / _SLOW_BYTES_PER_S
        recent = self._recent.get(_class_of(size_bytes))
        if recent is None or len(recent) < _SAMPLES_MIN:
            return most_s
        return min(max(_TIMES * recent.quantile(_QUANTILE), DELAY_S_MIN), most_s)

    def note(self, size_bytes: int, seconds: float) -> None:
        """A read that went well, hedged or not."""
        self._recent.setdefault(_class_of(size_bytes), _Recent()).add(seconds)
        self._budget_bytes = min(self._budget_bytes + SHARE * size_bytes, BURST_BYTES)

    def take(self, size_bytes: int) -> bool:
        """Whether that many bytes may be read twice; if so, they are spent."""
        if size_bytes > self._budget_bytes:
            return False
        self._budget_bytes -= size_bytes
        return True


class _Recent:
    """The last durations, in order of time and in order of length."""

    def __init__(self) -> None:
        self._by_time: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, seconds: float) -> None:
        self._by_time.append(seconds)
        insort(self._sorted, seconds)
        if len(self._by_time) > _SAMPLES_MAX:
            del self._sorted[bisect_left(self._sorted, self._by_time.popleft())]

    def quantile(self, share: float) -> float:
        return self._sorted[int(share * len(self._sorted))]


def _class_of(size_bytes: int) -> int:
    return size_bytes.bit_length() // 2
