"""Where copies lie, as columns for an answer."""

from collections.abc import Mapping, Sequence
from itertools import chain

from services.master.core import messages as m
from services.master.core.cluster import Segment
from services.master.core.objects import Copy, Slice


def make_places(
    slice_counts: list[int], parts: Sequence[Slice], held: Sequence[Sequence[Copy]], segments: Mapping[int, Segment]
) -> m.Places:
    """The columns of slices, `slice_counts` of them a key, each of which has the copies `held`.

    One loop a column: a call with thousands of keys spends its time here.
    """
    copies = list(chain.from_iterable(held))
    numbers, offsets = zip(*copies, strict=True) if copies else ((), ())
    named = list(dict.fromkeys(numbers))
    index_of = {number: index for index, number in enumerate(named)}
    return m.Places(
        segments=[segments[number].ref for number in named],
        slice_counts=slice_counts,
        slice_lengths=[part.length for part in parts],
        checksums=[part.checksum for part in parts],
        copy_counts=list(map(len, held)),
        copy_segments=list(map(index_of.__getitem__, numbers)),
        copy_offsets=list(offsets),
    )
