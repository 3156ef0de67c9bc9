"""Free extents of one segment. Best fit, neighbours merged; O(log n) in the number of free extents.

Only what is free is kept here; objects, writes and the quarantine know who holds the rest (invariant 3).
"""

from collections.abc import Iterable

from sortedcontainers import SortedList

ALIGN_BYTES = 256


def aligned(length: int) -> int:
    """The bytes an extent of `length` takes."""
    return -(-length // ALIGN_BYTES) * ALIGN_BYTES


class Allocator:
    """Hands out extents of [0, capacity) at multiples of `ALIGN_BYTES`."""

    def __init__(self, capacity: int, used: Iterable[tuple[int, int]] = ()) -> None:
        """`used`: (offset, length) of extents already taken. ValueError if they overlap or are out of bounds."""
        self.capacity = capacity // ALIGN_BYTES * ALIGN_BYTES
        self.free_bytes = 0
        self._by_size: SortedList[tuple[int, int]] = SortedList()
        self._length_at: dict[int, int] = {}  # start of a free extent -> its length
        self._start_of: dict[int, int] = {}  # end of a free extent -> its start
        position = 0
        for offset, length in sorted(used):
            if offset < position or offset + aligned(length) > self.capacity or offset % ALIGN_BYTES:
                raise ValueError(f"extent at {offset} of {length} bytes overlaps another or lies out of bounds")
            if offset > position:
                self._insert(position, offset - position)
            position = offset + aligned(length)
        if position < self.capacity:
            self._insert(position, self.capacity - position)

    @property
    def largest_free_bytes(self) -> int:
        return int(self._by_size[-1][0]) if self._by_size else 0

    def fits(self, length: int, count: int) -> bool:
        """Whether `count` extents of `length` bytes could be handed out now."""
        want = aligned(length)
        for size, _ in reversed(self._by_size):
            if count <= 0 or size < want:
                break
            count -= size // want
        return count <= 0

    def allocate(self, length: int) -> int | None:
        """The offset of the smallest free extent of at least `length` bytes; None if there is none."""
        assert length > 0
        want = aligned(length)
        found = self._by_size.bisect_left((want, -1))
        if found == len(self._by_size):
            return None
        size, offset = self._by_size[found]
        self._remove(offset, size)
        if size > want:
            self._insert(offset + want, size - want)
        return int(offset)

    def free(self, offset: int, length: int) -> None:
        """Give back what `allocate` handed out (or `used` named)."""
        size = aligned(length)
        assert 0 <= offset <= self.capacity - size, (offset, length)
        assert offset not in self._length_at, (offset, length)
        after = self._length_at.get(offset + size)
        if after is not None:
            self._remove(offset + size, after)
            size += after
        before = self._start_of.get(offset)
        if before is not None:
            length_before = offset - before
            self._remove(before, length_before)
            offset, size = before, size + length_before
        self._insert(offset, size)

    def extents(self) -> list[tuple[int, int]]:
        """The free extents as (offset, length), sorted by offset."""
        return sorted(self._length_at.items())

    def _insert(self, offset: int, size: int) -> None:
        self._by_size.add((size, offset))
        self._length_at[offset] = size
        self._start_of[offset + size] = offset
        self.free_bytes += size

    def _remove(self, offset: int, size: int) -> None:
        self._by_size.remove((size, offset))
        del self._length_at[offset]
        del self._start_of[offset + size]
        self.free_bytes -= size
