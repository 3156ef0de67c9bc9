"""Between messages of larder.v1 and the index's own values; the only module of the node that knows their shapes.

A master numbers segments for its reign: `Numbers` translates its ids to this node's and back. A message whose columns
do not fit together is refused whole (WireError), never half understood.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from larder.host import host_id
from larder.pool_file import HEADER_BYTES, PoolHeader
from larder.v1.node_pb2 import Copies, Forget, Hello
from larder.v1.types_pb2 import Segment
from larder.wire import ColumnError, pack_keys, unpack_keys

from services.common.version import VERSION
from services.storage_node.core.index import Copy, Place, SegmentNumber


class WireError(ValueError):
    """A message that cannot be meant."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """A master's ids of this node's segments, in the order of Hello.segments."""

    ids: tuple[int, ...]

    @classmethod
    def welcomed(cls, ids: Sequence[int], segment_count: int) -> "Numbers":
        if len(ids) != segment_count or len(set(ids)) != segment_count:
            raise WireError(f"the welcome names segments {list(ids)}, this node announced {segment_count}")
        return cls(tuple(ids))

    def own(self, segment_id: int) -> SegmentNumber:
        try:
            return SegmentNumber(self.ids.index(segment_id))
        except ValueError:
            raise WireError(f"segment {segment_id} was not given to this node, which has {list(self.ids)}") from None


@dataclass(frozen=True, slots=True)
class Reachable:
    """How the transfer engine's clients reach the pool; all empty where there is no engine."""

    endpoint: str = ""
    base: int = 0
    protocol: str = ""


def hello_to_wire(
    node_id: str, pool_path: str, header: PoolHeader, engine: Reachable, zone: str = "", address: str = ""
) -> Hello:
    """The first message of every attachment, with one segment; its epoch is set when it is sent."""
    segment = Segment(
        id=0,
        node_id=node_id,
        host_id=host_id(),
        capacity_bytes=header.capacity_bytes,
        shm_path=pool_path,
        shm_token=header.token,
        shm_data_offset=HEADER_BYTES,
        engine_endpoint=engine.endpoint,
        engine_base=engine.base,
        engine_protocol=engine.protocol,
    )
    return Hello(
        version=VERSION,
        node_id=node_id,
        incarnation=header.incarnation,
        host_id=host_id(),
        host_name=socket.gethostname(),
        address=address,
        zone=zone,
        segments=[segment],
    )


def copies_from_wire(message: Copies, numbers: Numbers, now_ms: int) -> list[Copy]:
    """`now_ms`: on the clock by which the node keeps the ends of the copies' lives."""
    try:
        keys = unpack_keys(message.keys)
    except ColumnError as error:
        raise WireError(str(error)) from error
    columns = (
        message.write_ids, message.object_sizes, message.slice_counts, message.slices, message.segment_ids,
        message.offsets, message.lengths, message.checksums, message.depths, message.wanted,
        message.pins or [0] * len(keys), message.ttls_ms or [0] * len(keys),
    )  # fmt: skip
    lengths = {len(column) for column in columns}
    if lengths != {len(keys)}:
        raise WireError(f"copies of {len(keys)} keys come with columns of {sorted(lengths)} entries")
    own = {segment: numbers.own(segment) for segment in set(message.segment_ids)}
    segments = [own[segment] for segment in message.segment_ids]
    ends = [now_ms + ttl_ms if ttl_ms else 0 for ttl_ms in columns[-1]]
    return list(map(Copy, keys, *columns[:4], segments, *columns[5:-1], ends))


def copies_to_wire(copies: Sequence[Copy], numbers: Numbers, now_ms: int) -> Copies:
    ends, pins = [copy.expires_ms for copy in copies], [copy.pin for copy in copies]
    return Copies(
        keys=pack_keys([copy.key for copy in copies]),
        write_ids=[copy.write_id for copy in copies],
        object_sizes=[copy.object_size for copy in copies],
        slice_counts=[copy.slice_count for copy in copies],
        slices=[copy.slice for copy in copies],
        segment_ids=[numbers.ids[copy.segment] for copy in copies],
        offsets=[copy.offset for copy in copies],
        lengths=[copy.length for copy in copies],
        checksums=[copy.checksum for copy in copies],
        depths=[copy.depth for copy in copies],
        wanted=[copy.wanted for copy in copies],
        pins=pins if any(pins) else (),
        ttls_ms=[max(1, end - now_ms) if end else 0 for end in ends] if any(ends) else (),
    )


def places_from_wire(message: Forget, numbers: Numbers) -> list[Place]:
    lengths = message.lengths or [0] * len(message.offsets)
    columns = (message.segment_ids, message.offsets, message.write_ids, lengths)
    entries = {len(column) for column in columns}
    if len(entries) != 1:
        raise WireError(f"places to forget come with columns of {sorted(entries)} entries")
    return [
        Place(numbers.own(segment), offset, write_id, length)
        for segment, offset, write_id, length in zip(*columns, strict=True)
    ]
