"""What a node holds: the records of all copies in its pools, which are all a new master has to learn from.

Pure: the agent brings the master's commands and carries the answers out. Segments are numbered by this node (0 is its
first pool); a master's own numbers never come here, for they end with its reign. Keeps invariant 3 on the node's side
(held extents are disjoint and in bounds), 5 (a repeated command changes nothing more) and 6 (an old epoch is refused).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from sortedcontainers import SortedDict

from services.common.held import HeldCopy

KEY_BYTES_MAX = 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Where a copy lies, and of which put it is: both must match for it to be forgotten.

    `length`: bytes in which no client may be writing any more when that is said; 0: not asked.
    """

    segment: int
    offset: int
    write_id: int
    length: int = 0


class Outcome(Enum):
    """What became of a command. Only DONE is acknowledged."""

    DONE = "done"
    OLD_EPOCH = "old_epoch"
    REJECTED = "rejected"
    CORRUPT = "corrupt"  # the bytes of a fetch's source do not match its checksum


@dataclass(frozen=True, slots=True)
class Answer:
    outcome: Outcome
    reason: str = ""  # why it was not done


DONE = Answer(Outcome.DONE)


class Index:
    """The copies in each segment by offset, and the highest epoch obeyed."""

    def __init__(self, capacities_bytes: Sequence[int]) -> None:
        assert all(capacity > 0 for capacity in capacities_bytes)
        self.epoch = 0
        self.capacities_bytes = tuple(capacities_bytes)
        self.held_bytes = [0] * len(capacities_bytes)
        self._copies: list[SortedDict[int, HeldCopy]] = [SortedDict() for _ in capacities_bytes]

    def __len__(self) -> int:
        return sum(len(copies) for copies in self._copies)

    def copies_in(self, segment: int) -> int:
        return len(self._copies[segment])

    def obey(self, epoch: int) -> Answer:
        """Whether a message of this epoch counts; from then on older ones do not."""
        if epoch < self.epoch:
            return Answer(Outcome.OLD_EPOCH, f"epoch {epoch} is over, epoch {self.epoch} was obeyed already")
        self.epoch = epoch
        return DONE

    def record(self, epoch: int, copies: Sequence[HeldCopy]) -> Answer:
        """These bytes are objects now: all of them or, if one of the records cannot be true, none."""
        answer = self.obey(epoch)
        if answer is not DONE:
            return answer
        added: list[HeldCopy] = []
        segment, start, stop = -1, 0, 0  # an extent known to be free: the copies of a put lie side by side
        for copy in copies:
            end = copy.offset + copy.length
            fault = self._fault(copy)
            if not fault and not (copy.segment == segment and start <= copy.offset and end <= stop):
                fault, stop = self._look(copy)
            if fault:
                self._drop(added)
                return Answer(Outcome.REJECTED, fault)
            segment, start = copy.segment, end
            held = self._copies[segment]
            if copy.offset not in held:
                held[copy.offset] = copy
                self.held_bytes[segment] += copy.length
                added.append(copy)
        return DONE

    def forget(self, epoch: int, places: Sequence[Place]) -> Answer:
        """These are no longer objects. What is not held or is of another put stays as it is."""
        answer = self.obey(epoch)
        if answer is not DONE:
            return answer
        for place in places:
            if not 0 <= place.segment < len(self._copies):
                continue
            held = self._copies[place.segment].get(place.offset)
            if held is not None and held.write_id == place.write_id:
                self._drop([held])
        return DONE

    def inventory(self, chunk_max: int) -> Iterator[list[HeldCopy]]:
        """Everything held when the first chunk is taken, in order of segment and offset."""
        assert chunk_max > 0
        held = [copy for copies in self._copies for copy in copies.values()]
        for start in range(0, len(held), chunk_max):
            yield held[start : start + chunk_max]

    def check(self) -> None:
        """Checks the invariants from scratch; AssertionError if one is broken."""
        for segment, copies in enumerate(self._copies):
            end = 0
            for offset, copy in copies.items():
                assert (copy.segment, copy.offset) == (segment, offset), f"{copy} is filed at {segment}:{offset}"
                assert offset >= end, f"{copy} overlaps the copy before it, which ends at {end}"
                assert copy.length > 0, f"{copy} is empty"
                end = offset + copy.length
            assert end <= self.capacities_bytes[segment], f"segment {segment} is held up to {end}"
            held = sum(copy.length for copy in copies.values())
            assert self.held_bytes[segment] == held, (
                f"segment {segment} counts {self.held_bytes[segment]}, holds {held}"
            )

    def _drop(self, copies: Sequence[HeldCopy]) -> None:
        for copy in copies:
            del self._copies[copy.segment][copy.offset]
            self.held_bytes[copy.segment] -= copy.length
            assert self.held_bytes[copy.segment] >= 0

    def _fault(self, copy: HeldCopy) -> str:
        """Why this record cannot be true, whatever is held; empty if it can."""
        if not 0 <= copy.segment < len(self._copies):
            return f"segment {copy.segment} is not on this node"
        if not 0 < len(copy.key) <= KEY_BYTES_MAX:
            return f"a key of {len(copy.key)} bytes: expected 1 to {KEY_BYTES_MAX}"
        if not 0 <= copy.slice_index < copy.slice_count:
            return f"slice {copy.slice_index} of an object of {copy.slice_count} slices"
        end = copy.offset + copy.length
        if copy.length <= 0 or copy.offset < 0 or end > self.capacities_bytes[copy.segment]:
            return (
                f"{copy.length} bytes at {copy.offset} are out of bounds, "
                f"the segment has {self.capacities_bytes[copy.segment]}"
            )
        return ""

    def _look(self, copy: HeldCopy) -> tuple[str, int]:
        """Why there is no room for it, empty if there is; and the end of the free extent, 0 if it is held already."""
        held, end = self._copies[copy.segment], copy.offset + copy.length
        position = held.bisect_left(end)
        if position:
            other = held.peekitem(position - 1)[1]  # the last copy that starts before this one's end
            if other.offset + other.length > copy.offset:
                if other._replace(expires_ms=copy.expires_ms) == copy:
                    return "", 0
                what = f"the {other.length} bytes at {other.offset} of another put"
                return f"{copy.length} bytes at {copy.offset} overlap {what}", 0
        return "", held.peekitem(position)[0] if position < len(held) else self.capacities_bytes[copy.segment]
