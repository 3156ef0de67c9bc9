"""What was put in one call is found again by one comparison of its keys, end to end, instead of a lookup for each.

A prompt's keys are put in its order and asked for in its order. All objects of a run before its `end` are there. An
object that goes cuts its run short; what follows is then looked up one by one. No run outlives most of its objects, so
that its bytes are bounded by theirs (invariant 12). Only for keys of one length, as hashes are.
"""

from array import array
from collections.abc import Sequence
from itertools import takewhile

from services.master.core.objects import Object
from services.master.core.packed import PackedKeys, Run

RUN_MAX = 256  # objects; their places are small integers, which take no memory of their own
ALONE_MAX = 8  # keys not followed by the next one of their run: they were not put so, and looking them up is faster


def link(objects: Sequence[Object]) -> None:
    """These objects were put together, in this order, and are all there."""
    for start in range(0, len(objects), RUN_MAX):
        some = objects[start : start + RUN_MAX]
        widths = {len(obj.key) for obj in some}
        if len(some) == 1 or len(widths) > 1:
            continue
        run = Run(b"".join([obj.key for obj in some]), widths.pop(), [obj.size for obj in some])
        for place, obj in enumerate(some):
            obj.run, obj.place = run, place


def unlink(obj: Object) -> None:
    """The object goes."""
    run, obj.run = obj.run, None
    if run is None:
        return
    run.left -= 1
    run.end = min(run.end, obj.place)
    if 2 * run.left < run.count:
        run.keys, run.sizes, run.end = b"", array("Q"), 0


def leading(objects: dict[bytes, Object], keys: Sequence[bytes], start: int) -> tuple[int, int]:
    """How many leading keys are there, given that the first `start` are, and the bytes of those from there on.

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
