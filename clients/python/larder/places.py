"""Where slices lie, as values: the wire's columns unpacked. No I/O, no clock."""

from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate, chain, repeat
from operator import add, gt
from typing import NamedTuple, TypeVar

from larder.errors import LarderError
from larder.v1 import types_pb2

T = TypeVar("T")


class Fault(IntEnum):
    """Why a copy could not be read or written. The first two are the wire's numbers (`larder.v1.Fault`)."""

    CORRUPT = 1  # the checksum does not match
    UNREACHABLE = 2  # the transfer failed or timed out, or there is no way to the segment
    STALLED = 3  # the same, but unanswered: bytes may still arrive
    LATE = (
        4  # the lease, the write or the call ran out: nobody's fault; nothing may be kept, and bytes may still arrive
    )


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


def unpack(places: types_pb2.Places) -> list[list[Slice]]:
    """The slices of each key in turn; raises LarderError if the columns contradict each other.

    A loop a column: a put or a get of thousands of keys spends its time here.
    """
    segments = [segment_of(message) for message in places.segments]
    lengths, counts, offsets = list(places.slice_lengths), list(places.copy_counts), list(places.copy_offsets)
    try:
        if not (len(lengths) == len(places.checksums) == len(counts) and len(offsets) == len(places.copy_segments)):
            raise ValueError("columns of different lengths")
        holders = [segments[index] for index in places.copy_segments]
        held = _cut(list(map(Copy, holders, offsets)), counts)
        ends = map(add, offsets, chain.from_iterable(map(repeat, lengths, counts)))
        if any(map(gt, ends, [segment.capacity_bytes for segment in holders])):  # outside the pool is not ours
            raise ValueError("a copy beyond its segment")
        return _cut(list(map(Slice, lengths, places.checksums, held)), list(places.slice_counts))
    except (IndexError, ValueError) as error:
        raise LarderError("the master's answer contradicts itself: its columns of places do not agree") from error


def _cut(items: list[T], counts: list[int]) -> list[list[T]]:
    """The items in runs of these lengths; ValueError if there are more or fewer items."""
    if sum(counts) != len(items):
        raise ValueError(f"{len(items)} items where {sum(counts)} were expected")
    if counts.count(1) == len(counts):  # the usual case
        return [[item] for item in items]
    return [items[end - count : end] for count, end in zip(counts, accumulate(counts), strict=True)]


def segment_of(message: types_pb2.Segment) -> Segment:
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
