"""Memory of the client's own that the engine reads and writes where it may not touch the caller's. Pump thread only.

A buffer whose transfer was given up is retired: it stays out of use until the engine has answered for it. Live buffers
are bounded by BUDGET_BYTES, retired ones by the pump's bound on what is in flight to one peer.
"""

import ctypes
import mmap
from collections.abc import Callable
from typing import Final

BUDGET_BYTES: Final = 256 * 2**20
BUFFER_BYTES_MIN: Final = 64 * 1024


class Buffer:
    """Anonymous memory of a power of two bytes."""

    __slots__ = ("_memory", "address", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))


class Staging:
    """Buffers, free and in use."""

    def __init__(self, register: Callable[[int, int], None], unregister: Callable[[int], None]) -> None:
        self._register = register
        self._unregister = unregister
        self._free: list[Buffer] = []
        self._free_bytes = 0
        self._used_bytes = 0

    def take(self, length: int) -> Buffer | None:
        """A buffer of at least `length` bytes; None while the budget is used up."""
        size = max(BUFFER_BYTES_MIN, 1 << (length - 1).bit_length())
        if self._used_bytes and self._used_bytes + size > BUDGET_BYTES:
            return None
        buffer = next((each for each in self._free if each.size == size), None)
        if buffer is not None:
            self._free.remove(buffer)
            self._free_bytes -= size
        else:
            self._make_room(size)
            buffer = Buffer(size)
            self._register(buffer.address, size)
        self._used_bytes += size
        return buffer

    def give_back(self, buffer: Buffer, *, retired: bool = False) -> None:
        """The engine has answered for the buffer; `retired`: it was retired meanwhile."""
        if not retired:
            self._used_bytes -= buffer.size
        self._free.append(buffer)
        self._free_bytes += buffer.size
        self._make_room(0)

    def retire(self, buffer: Buffer) -> None:
        """Its transfer was given up and may still land: out of use until give_back."""
        self._used_bytes -= buffer.size

    def clear(self) -> None:
        """Lets go of what is not in use."""
        while self._free:
            self._unregister(self._free.pop().address)
        self._free_bytes = 0

    def _make_room(self, size: int) -> None:
        while self._free and self._used_bytes + self._free_bytes + size > BUDGET_BYTES:
            oldest = self._free.pop(0)
            self._free_bytes -= oldest.size
            self._unregister(oldest.address)
