"""What is on its way in a get: objects and their slices, where their bytes go, and what became of each. No I/O.

A transfer that was given up may still land in the memory it was meant for. So a slice that is read again goes to memory
of its own, a detour, and is brought home at the end: into the caller's memory once the first read has ended, for then
nothing lands there any more; private memory has no such end, so there the whole object gets new memory.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from larder.copying import copy_memory
from larder.errors import DataLost, DeadlineExceeded, Unreachable
from larder.memory import Memory, destination, fresh_bytes
from larder.places import Copy, Fault, Slice
from larder.transports import Move


class Landing:
    """Where an object's bytes go. `value` is the answer once they are there."""

    __slots__ = ("memory", "private", "value")

    def __init__(self, memory: Memory, value: Any, *, private: bool) -> None:
        self.memory = memory
        self.value = value
        self.private = private


Prepare = Callable[[int, int], Landing]
"""(index of the key, object's size) -> where it goes; raises InvalidArgument where it does not fit."""


class SliceRead:
    """One slice on its way; `copies` are those not tried yet. It is read into `memory`: its `home`, or a detour."""

    __slots__ = (
        "_checksum",
        "_private",
        "copies",
        "corrupt",
        "fault",
        "home",
        "key",
        "memory",
        "node",
        "number",
        "part",
    )

    def __init__(self, key: bytes, number: int, part: Slice, home: Memory, *, private: bool, verify: bool) -> None:
        self.key = key
        self._private = private
        self._checksum = part.checksum if verify else 0
        self.number = number
        self.part = part
        self.copies = list(part.copies)
        self.corrupt: set[Copy] = set()
        self.home = self.memory = home
        self.node: str | None = None
        self.fault: Fault | None = None

    @property
    def private(self) -> bool:
        """Whether nobody else knows the memory yet."""
        return self._private or self.memory is not self.home

    def move(self, copy: Copy, memory: Memory, *, private: bool) -> Move:
        """Of that copy's bytes to that memory."""
        return Move(memory, copy.offset, checksum=self._checksum, private=private)


class KeyRead:
    """One object on its way. Raises LarderError where there is no place for it."""

    __slots__ = ("index", "key", "landing", "reads", "size")

    def __init__(
        self, index: int, key: bytes, size: int, slices: list[Slice], prepare: Prepare, *, verify: bool
    ) -> None:
        self.index = index
        self.key = key
        self.size = size
        self.landing = prepare(index, size)
        self.reads: list[SliceRead] = []
        start = 0
        for number, part in enumerate(slices):
            home = self.landing.memory.cut(start, part.length)
            self.reads.append(SliceRead(key, number, part, home, private=self.landing.private, verify=verify))
            start += part.length

    @property
    def bad(self) -> SliceRead | None:
        """The first slice that could not be read."""
        return next((read for read in self.reads if read.fault is not None), None)

    def bring_home(self, prepare: Prepare) -> list[Callable[[], None]]:
        """The copies to make, so that all bytes are where they belong. All reads have ended, and well."""
        astray = [read for read in self.reads if read.memory is not read.home]
        if astray and self.landing.private:
            self.landing = prepare(self.index, self.size)
            astray = self.reads
            start = 0
            for read in astray:
                read.home = self.landing.memory.cut(start, read.part.length)
                start += read.part.length
        return [partial(copy_memory, read.memory, read.home) for read in astray]

    def has_others(self, slices: Sequence[Slice]) -> bool:
        """Whether a slice that could not be read has copies now that it had not when the object was read."""
        if len(slices) != len(self.reads):
            return bool(slices)
        pairs = zip(self.reads, slices, strict=True)
        return any(read.fault is not None and not set(part.copies) <= set(read.part.copies) for read, part in pairs)

    def answer(self) -> Any:
        """The landing's value, or why there is none."""
        bad = self.bad
        if bad is None:
            return self.landing.value
        if bad.fault is Fault.LATE:
            return DeadlineExceeded("the time or the lease ran out before all bytes were there", key=self.key)
        if bad.corrupt.issuperset(bad.part.copies):
            return DataLost(f"every copy of slice {bad.number} has the wrong checksum", key=self.key, node=bad.node)
        return Unreachable(f"no copy of slice {bad.number} can be read from this host", key=self.key, node=bad.node)


def bytes_landing(index: int, size: int) -> Landing:
    """Of a new bytes object; a bytearray where it has less than 2 bytes."""
    if size < 2:
        tiny = bytearray(size)
        return Landing(destination(tiny), tiny, private=True)
    data, memory = fresh_bytes(size)
    return Landing(memory, data, private=True)


def array_landing(index: int, size: int) -> Landing:
    """Of a new array of bytes."""
    array = np.empty(size, dtype=np.uint8)
    return Landing(destination(array), array, private=True)
