"""What was put in one call is found again with one comparison: its keys, end to end, beside a lookup for each.

A prompt's keys are put in its order and asked for in its order. Of a run, the objects before `end` are all there. An
object that goes cuts its run short; the rest is then looked up one by one. No run outlives most of its objects, so that
its bytes are bounded by theirs (invariant 12). Only for keys of one length, as hashes are.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.master.core.tables import Object

RUN_MAX = 256  # objects; their places are small integers, which take no memory of their own
ALONE_MAX = 8  # keys whose next one is another than in their run: these were not put so, and are looked up faster


class Run:
    __slots__ = ("count", "end", "keys", "left", "width")

    def __init__(self, keys: bytes, width: int) -> None:
        self.keys = keys
        self.width = width  # bytes of a key
        self.count = self.end = self.left = len(keys) // width

    def length(self, place: int, keys: Sequence[bytes], start: int) -> int:
        """How many of the keys from `start` on, which is the one at `place`, are those of the run."""
        high, offset, width = min(self.end - place, len(keys) - start), place * self.width, self.width
        if high < 2 or not self.keys.startswith(keys[start + 1], offset + width):
            return min(high, 1)
        wanted = b"".join(keys[start : start + high])
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
        run = Run(b"".join([obj.key for obj in some]), widths.pop())
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
        run.keys, run.end = b"", 0


def leading(objects: "dict[bytes, Object]", keys: Sequence[bytes], start: int, width: int) -> int:
    """How many leading keys are there, given that the first `start` are. Width: of all keys, 0 where they differ."""
    alone = 0
    while width and start < len(keys) and alone < ALONE_MAX:
        obj = objects.get(keys[start])
        if obj is None:
            return start
        if obj.run is None or obj.run.width != width:
            break
        length = obj.run.length(obj.place, keys, start)
        if length <= 0:
            break
        alone += length == 1
        start += length
    return start + len(list(takewhile(objects.__contains__, keys[start:])))
