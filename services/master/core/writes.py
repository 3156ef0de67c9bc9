"""Writes under way, between a put's start and its end: their extents are reserved, their bytes count for nothing yet.

Keeps invariants 7 (extents that may still be written to rest) and 12 (each client has its share).
"""

from collections.abc import Sequence

from services.master.core.extents import Extents
from services.master.core.grants import Grants
from services.master.core.messages import Pin
from services.master.core.objects import Copy, Slice
from services.master.core.pending import PendingStart, Write
from services.master.core.tables import State

_HARD = Pin.HARD  # members of an enum are slow to look up


class Writes:
    def __init__(self, state: State, extents: Extents) -> None:
        self.state = state
        self.extents = extents
        self.grants = Grants(state.config)

    def open(self, pending: PendingStart, size: int, objects: Sequence[list[Slice]]) -> None:
        """Open writes for the next keys, one for each object's slices."""
        state, keys, depths, terms = self.state, pending.command.keys, pending.command.depths, pending.terms
        for index, slices in enumerate(objects, pending.next):
            state.next_write_id += 1
            write_id, key = state.next_write_id, keys[index]
            write = Write(write_id, key, size, depths[index] if depths else 0, slices, terms)
            state.writes[write_id] = write
            state.writing[key] = state.writing.get(key, 0) + 1
            if terms.pin == _HARD:
                state.pinned_writes[write_id] = write
            pending.write_ids[index] = write_id  # and the result is OK until something else is decided
        pending.next += len(objects)

    def find_open(self, write_id: int) -> Write | None:
        """The write, if it was started and neither ended, aborted nor expired."""
        write = self.state.writes.get(write_id)
        return write if write is not None and write.end is None else None

    def keep_written(self, write: Write, part: Slice, failed: Sequence[bool]) -> None:
        """Keep those copies of a slice that were written and can be recorded; release the others."""
        kept: list[Copy] = []
        for copy, bad in zip(part.copies, failed, strict=True):
            segment = self.state.segments.get(copy.segment)
            if segment is not None and segment.live and not bad:
                kept.append(copy)
                continue
            if bad and segment is not None:
                self.state.unreached.append(segment.number)
            # What failed for the client may still land; what merely cannot be recorded has been written.
            not_before = self.state.now + (self.state.config.late_write_ms if bad else 0)
            self.extents.release(copy, part.length, write.write_id, not_before=not_before, recorded=False)
        part.copies = kept

    def drop(self, write_id: int) -> bool:
        """Give up an open write: its bytes may still be on their way, so its extents rest. False if it is not open."""
        write = self.find_open(write_id)
        if write is None:
            return False
        not_before = self.state.now + self.state.config.late_write_ms
        for part in write.slices:
            for copy in part.copies:
                self.extents.release(copy, part.length, write_id, not_before=not_before, recorded=False)
        self.close(write)
        return True

    def close(self, write: Write) -> None:
        """It has ended one way or another, and its extents are taken care of."""
        state, key = self.state, write.key
        del state.writes[write.write_id]
        if write.terms.pin == _HARD:
            del state.pinned_writes[write.write_id]
        self.grants.give_back(write.terms.client, 1)
        left = state.writing.pop(key) - 1
        if left:
            state.writing[key] = left
        elif state.replaced:
            state.replaced.pop(key, None)
        state.ended_keys.append(key)
