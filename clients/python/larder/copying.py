"""Copies between the caller's memory and a pool, and checksums on the way (invariant 10). Called from copy threads.

Copying and hashing go chunk by chunk, so that the second finds the bytes in the processor's cache; both release the
interpreter's lock. A digest of 0 is recorded as 1: 0 means that no checksum was made.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Final

import xxhash

from larder.memory import Memory, Piece, view_at
from larder.nontemporal import copy

CHUNK_BYTES: Final = 2 * 2**20
"""What is hashed is still in a cache when it is copied; and where memmove copies, the C library passes the caches by in
runs of about 1 MiB and more only: on an AMD EPYC with hashing 1.7 times as fast as in runs of 512 KiB."""


class TooLate(Exception):
    """The lease or the write ran out midway."""


def store_pieces(pieces: Sequence[Piece], pool: int, *, hashing: bool, until: float) -> int:
    """Gathers pieces into the pool at address `pool`; answers their checksum, 0 without hashing.

    `until` is a moment of time.monotonic(): after it nothing is written, and TooLate is raised.
    """
    if len(pieces) == 1 and pieces[0][1] <= CHUNK_BYTES:
        address, length = pieces[0]
        digest = checksum(pieces) if hashing else 0
        _check_time(until)
        copy(pool, address, length)
        return digest
    hasher = xxhash.xxh3_64()
    for address, length in _chunks(pieces):
        if hashing:
            hasher.update(view_at(address, length))
        _check_time(until)
        copy(pool, address, length)
        pool += length
    return (hasher.intdigest() or 1) if hashing else 0


def load_pieces(pieces: Sequence[Piece], pool: int, *, hashing: bool) -> int:
    """Scatters bytes of the pool over pieces; answers the checksum of what arrived, 0 without hashing."""
    if len(pieces) == 1 and pieces[0][1] <= CHUNK_BYTES:
        address, length = pieces[0]
        copy(address, pool, length)
        return checksum(pieces) if hashing else 0
    hasher = xxhash.xxh3_64()
    for address, length in _chunks(pieces):
        copy(address, pool, length)
        if hashing:
            hasher.update(view_at(address, length))
        pool += length
    return (hasher.intdigest() or 1) if hashing else 0


def copy_memory(origin: Memory, target: Memory) -> None:
    """Copies bytes between two memories of one length."""
    start = 0
    for address, length in origin.pieces:
        load_pieces(target.cut(start, length).pieces, address, hashing=False)
        start += length


def checksum(pieces: Sequence[Piece]) -> int:
    """xxh3-64 of the pieces end to end, never 0."""
    if len(pieces) == 1:
        return checksum_of(view_at(*pieces[0]))
    hasher = xxhash.xxh3_64()
    for address, length in pieces:
        hasher.update(view_at(address, length))
    return hasher.intdigest() or 1


def checksum_of(view: memoryview) -> int:
    """xxh3-64 of one run of bytes, never 0."""
    return xxhash.xxh3_64_intdigest(view) or 1


def _chunks(pieces: Sequence[Piece]) -> Iterator[Piece]:
    for address, length in pieces:
        for start in range(0, length, CHUNK_BYTES):
            yield address + start, min(CHUNK_BYTES, length - start)


def _check_time(until: float) -> None:
    if time.monotonic() >= until:
        raise TooLate
