"""Memory that the caller registered: the engine may read and write it directly."""

from bisect import bisect_right, insort

from larder.errors import InvalidArgument
from larder.memory import Memory, Piece


class Regions:
    """Registered memory by address; regions do not overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._held: dict[int, tuple[int, Memory]] = {}  # start -> length, and what keeps it alive

    def pieces(self) -> list[Piece]:
        return [(start, self._held[start][0]) for start in self._starts]

    def add(self, memory: Memory) -> None:
        """Raises InvalidArgument where any of it is registered already."""
        for start, length in memory.pieces:
            index = bisect_right(self._starts, start)
            before = self._starts[index - 1] if index else None
            after = self._starts[index] if index < len(self._starts) else None
            if (before is not None and before + self._held[before][0] > start) or (
                after is not None and after < start + length
            ):
                raise InvalidArgument(f"buffer of {length} bytes is registered already, or overlaps one that is")
            insort(self._starts, start)
            self._held[start] = (length, memory)

    def remove(self, memory: Memory) -> None:
        """Raises InvalidArgument where it is not registered."""
        for piece in memory.pieces:
            if self._held.get(piece[0], (0,))[0] != piece[1]:
                raise InvalidArgument(f"buffer of {piece[1]} bytes is not registered")
        for start, _ in memory.pieces:
            self._starts.remove(start)
            del self._held[start]

    def cover(self, memory: Memory) -> bool:
        """Whether all of it is registered."""
        return all(self._covers(*piece) for piece in memory.pieces)

    def _covers(self, address: int, length: int) -> bool:
        index = bisect_right(self._starts, address)
        if not index:
            return False
        start = self._starts[index - 1]
        return address + length <= start + self._held[start][0]
