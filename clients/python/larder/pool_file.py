"""The header of a pool file, shared by the storage node that writes it and the clients that map it.

A pool is a file: HEADER_BYTES of header, then capacity_bytes of data. Nothing here opens a file. The token proves that
two processes see the same file (same host is never concluded from names); the incarnation tells two lives of a node
apart (invariant 6). Layout, little endian: magic 8 bytes, version u32, reserved u32, capacity u64, token 16 bytes,
incarnation u64, zeroes.
"""

import struct
from dataclasses import dataclass
from typing import Final

MAGIC: Final = b"LARDPOOL"
VERSION: Final = 1
TOKEN_BYTES: Final = 16
HEADER_BYTES: Final = 4096
"""Also the offset of the first data byte in the file: a page, so that the data area is page-aligned when mapped."""

_LAYOUT: Final = struct.Struct("<8sIIQ16sQ")
_U64_MAX: Final = 2**64 - 1


class PoolFileError(ValueError):
    """These bytes are not the header of a pool file this version can read."""


@dataclass(frozen=True, slots=True)
class PoolHeader:
    """What a pool file says about itself."""

    capacity_bytes: int
    token: bytes
    incarnation: int

    def __post_init__(self) -> None:
        if not 0 < self.capacity_bytes <= _U64_MAX:
            raise PoolFileError(f"pool capacity must be a positive number of bytes, not {self.capacity_bytes}")
        if len(self.token) != TOKEN_BYTES:
            raise PoolFileError(f"pool token must be {TOKEN_BYTES} bytes, not {len(self.token)}")
        if not 0 <= self.incarnation <= _U64_MAX:
            raise PoolFileError(f"incarnation must fit 64 bits, not {self.incarnation}")

    def pack(self) -> bytes:
        """The header as HEADER_BYTES bytes."""
        packed = _LAYOUT.pack(MAGIC, VERSION, 0, self.capacity_bytes, self.token, self.incarnation)
        return packed.ljust(HEADER_BYTES, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> "PoolHeader":
        """Reads a header from the first bytes of a file; raises PoolFileError and names what is wrong."""
        if len(data) < _LAYOUT.size:
            raise PoolFileError(f"not a pool file: {len(data)} bytes, a header has {HEADER_BYTES}")
        magic, version, _, capacity_bytes, token, incarnation = _LAYOUT.unpack_from(data)
        if magic != MAGIC:
            raise PoolFileError(f"not a pool file: it starts with {magic!r}, not {MAGIC!r}")
        if version != VERSION:
            raise PoolFileError(f"pool file of format version {version}, this larder reads version {VERSION}")
        return cls(capacity_bytes=capacity_bytes, token=token, incarnation=incarnation)
