"""What was put in one call is found again with one comparison: its keys, end to end, beside a lookup for each.

A prompt's keys are put in its order and asked for in its order. Of a run, the objects before `end` are all there. An
object that goes cuts its run short; the rest is then looked up one by one. No run outlives most of its objects, so that
its bytes are bounded by theirs (invariant 12). Only for keys of one length, as hashes are.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from services.master.core.tables import Object

RUN_MAX = 256  # objects; their places are small integers, which take no memory of their own
ALONE_MAX = 8  # keys whose next one is another than in their run: these were not put so, and are looked up faster


class PackedKeys(Sequence[bytes]):
    """Keys of one width, end to end as they came: each is made only where somebody looks at it."""

    __slots__ = ("_data", "width")

    def __init__(self, data: bytes, width: int) -> None:
        """ValueError where the data is no whole number of keys."""
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
    __slots__ = ("count", "end", "keys", "left", "sizes", "width")

    def __init__(self, keys: bytes, width: int, sizes: Sequence[int]) -> None:
        self.keys = keys
        self.width = width  # bytes of a key
        self.sizes = array("Q", accumulate(sizes, initial=0))  # of all objects before each place
        self.count = self.end = self.left = len(sizes)

    def length(self, place: int, keys: PackedKeys, start: int) -> int:
        """How many of the keys from `start` on, which is the one at `place`, are those of the run."""
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


def link(objects: "Sequence[Object]") -> None:
    """These were put together, in this order, and are all there."""
    for start in range(0, len(objects), RUN_MAX):
        some = objects[start : start + RUN_MAX]
        widths = {len(obj.key) for obj in some}
        if len(some) == 1 or len(widths) > 1:
            continue
        run = Run(b"".join([obj.key for obj in some]), widths.pop(), [obj.size for obj in some])
        for place, obj in enumerate(some):
            obj.run, obj.place = run, place


def unlink(obj: "Object") -> None:
    """The object goes."""
    run, obj.run = obj.run, None
    if run is None:
        return
    run.left -= 1
    run.end = min(run.end, obj.place)
    if 2 * run.left < run.count:
        run.keys, run.sizes, run.end = b"", array("Q"), 0


def leading(objects: "dict[bytes, Object]", keys: Sequence[bytes], start: int) -> tuple[int, int]:
    """How many leading keys are there, given that the first `start` are; and the bytes of the others.

    Packed keys are compared with runs.
    """
    alone = size = 0
    while isinstance(keys, PackedKeys) and start < len(keys) and alone < ALONE_MAX:
        obj = objects.get(keys.joined(start, start + 1))
        if obj is None:
            return start, size
        if obj.run is None or obj.run.width != keys.width:
            break
        length = obj.run.length(obj.place, keys, start)
        if length <= 0:
            break
        alone += length == 1
        size += obj.run.sizes[obj.place + length] - obj.run.sizes[obj.place]
        start += length
    rest = list(takewhile(lambda obj: obj is not None, map(objects.get, keys[start:])))
    return start + len(rest), size + sum([obj.size for obj in rest if obj is not None])
