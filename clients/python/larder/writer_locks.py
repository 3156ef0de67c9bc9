"""Locks by which whoever writes into a pool file shows its node where (invariant 7). For clients and storage nodes.

A writer locks the bytes first, then looks whether its time is over, then copies, then unlocks. A node that is to give
up an expired write's extent does so only when nobody holds a lock there: a client that was stopped in the middle of a
copy, for however long, still finds its own place. The locks are the kernel's, of the open file description: writers
never wait for each other, looking does not wait either, and a lock goes with its process. Offsets are the file's.
"""

import fcntl
import os
import struct
from typing import Final

_FLOCK: Final = struct.Struct("@hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid, as 64-bit Linux has them


def lock(fd: int, start: int, length: int) -> None:
    """Marks bytes as being written, until unlock or the end of the process; raises OSError."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, start, length, 0))


def unlock(fd: int, start: int, length: int) -> None:
    """The reverse, of the same bytes."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, length, 0))


def has_writer(fd: int, start: int, length: int) -> bool:
    """Whether any of these bytes are marked through another open file description than `fd`'s."""
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted))[0]
    return kind != fcntl.F_UNLCK
