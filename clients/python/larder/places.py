"""Where slices lie, as values: the wire's columns unpacked. No I/O, no clock."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from larder.errors import LarderError
from larder.v1 import types_pb2


class Fault(IntEnum):
    """Why a copy could not be read or written. The first two are the wire's numbers (`larder.v1.Fault`)."""

    CORRUPT = 1  # the checksum does not match
    UNREACHABLE = 2  # the transfer failed or timed out, or there is no way to the segment
    STALLED = 3  # the same, but unanswered: bytes may still arrive
    LATE = 4  # the lease, the write or the call ran out: nobody's fault, nothing may be kept, bytes may still arrive


@dataclass(frozen=True, slots=True)
class Segment:
    """One node's pool, and the ways to its bytes."""

    id: int
    node_id: str
    capacity_bytes: int
    shm_path: str
    shm_token: bytes
    shm_data_offset: int
    engine_endpoint: str
    engine_base: int
    engine_protocol: str
    host_id: str = ""
    zone: str = ""


class Copy(NamedTuple):
    """One slice's bytes on one node; the offset counts from the segment's first data byte."""

    segment: Segment
    offset: int


class Slice(NamedTuple):
    """A contiguous part of an object. Checksum 0: none was recorded."""

    length: int
    checksum: int
    copies: list[Copy]


def unpack(places: types_pb2.Places) -> Iterator[list[Slice]]:
    """The slices of each key in turn; raises LarderError when the columns contradict each other."""
    segments = [_segment(message) for message in places.segments]
    copies = zip(places.copy_segments, places.copy_offsets, strict=True)
    slices = zip(places.slice_lengths, places.checksums, places.copy_counts, strict=True)
    try:
        for count in places.slice_counts:
            parts = []
            for length, checksum, copy_count in [next(slices) for _ in range(count)]:
                held = [next(copies) for _ in range(copy_count)]
                found = [_copy(segments[index], offset, length) for index, offset in held]
                parts.append(Slice(length, checksum, found))
            yield parts
    except (StopIteration, IndexError, ValueError) as error:
        raise LarderError("the master's answer contradicts itself: its columns of places do not agree") from error


def _copy(segment: Segment, offset: int, length: int) -> Copy:
    if offset + length > segment.capacity_bytes:  # never let a wrong answer reach outside the pool
        raise ValueError("a copy beyond its segment")
    return Copy(segment, offset)


def _segment(message: types_pb2.Segment) -> Segment:
    return Segment(
        id=message.id,
        node_id=message.node_id,
        capacity_bytes=message.capacity_bytes,
        shm_path=message.shm_path,
        shm_token=message.shm_token,
        shm_data_offset=message.shm_data_offset,
        engine_endpoint=message.engine_endpoint,
        engine_base=message.engine_base,
        engine_protocol=message.engine_protocol,
        host_id=message.host_id,
        zone=message.zone,
    )
