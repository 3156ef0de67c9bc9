"""Keys end to end, as calls bring them and as a run remembers what was put together.

Only for keys of one length, as hashes are.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import overload


class PackedKeys(Sequence[bytes]):
    """Keys of one width, end to end as they came; each is made only when it is looked at."""

    __slots__ = ("_data", "width")

    def __init__(self, data: bytes, width: int) -> None:
        """ValueError if the data is not a whole number of keys."""
        if not width or len(data) % width:
            raise ValueError(f"{len(data)} bytes are no whole number of keys of {width} bytes")
        self._data = data
        self.width = width

    def __len__(self) -> int:
        return len(self._data) // self.width

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return list(self)[index]
        at = range(len(self))[index] * self.width
        return self._data[at : at + self.width]

    def __iter__(self) -> Iterator[bytes]:
        return (key for (key,) in struct.iter_unpack(f"{self.width}s", self._data))

    def __repr__(self) -> str:
        return f"PackedKeys({self._data!r}, {self.width})"

    def joined(self, start: int, stop: int) -> bytes:
        """Those keys, end to end."""
        return self._data[start * self.width : stop * self.width]


class Run:
    """What was put in one call, in order; kept up to date by `runs`."""

    __slots__ = ("count", "end", "keys", "left", "sizes", "width")

    def __init__(self, keys: bytes, width: int, sizes: Sequence[int]) -> None:
        self.keys = keys
        self.width = width  # bytes of a key
        self.sizes = array("Q", accumulate(sizes, initial=0))  # the sum before each place
        self.count = self.end = self.left = len(sizes)

    def length(self, place: int, keys: PackedKeys, start: int) -> int:
        """How many keys from `start` on continue the run, given that the one at `start` is the run's at `place`."""
        high, offset, width = min(self.end - place, len(keys) - start), place * self.width, self.width
        if high < 2 or not self.keys.startswith(keys.joined(start + 1, start + 2), offset + width):
            return min(high, 1)
        wanted = keys.joined(start, start + high)
        if self.keys.startswith(wanted, offset):
            return high
        low = 2
        while high - low > 1:
            middle = (low + high) // 2
            if self.keys.startswith(wanted[: middle * width], offset):
                low = middle
            else:
                high = middle
        return low
