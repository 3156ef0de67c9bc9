"""Between the messages of larder.v1 and the index's own values; no other module of the node knows both.

A master numbers segments for its reign: `Numbers` translates its ids to this node's and back. A message whose columns
do not fit together is refused as a whole (WireError).
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from larder.host import host_id
from larder.pool_file import HEADER_BYTES, PoolHeader
from larder.v1.node_pb2 import Copies, Forget, Hello
from larder.v1.types_pb2 import Segment
from larder.wire import ColumnError

from services.common.copies import pack_copies, unpack_copies
from services.common.held import HeldCopy
from services.common.version import VERSION
from services.storage_node.core.index import Place


class WireError(ValueError):
    """A message that makes no sense."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """A master's ids of this node's segments, in the order of Hello.segments."""

    ids: tuple[int, ...]

    @classmethod
    def welcomed(cls, ids: Sequence[int], segment_count: int) -> "Numbers":
        if len(ids) != segment_count or len(set(ids)) != segment_count:
            raise WireError(f"the welcome names segments {list(ids)}, this node announced {segment_count}")
        return cls(tuple(ids))

    def own(self, segment_id: int) -> int:
        try:
            return int(self.ids.index(segment_id))
        except ValueError:
            raise WireError(f"segment {segment_id} was not given to this node, which has {list(self.ids)}") from None


@dataclass(frozen=True, slots=True)
class Reachable:
    """How clients of the transfer engine reach the pool; all empty without an engine."""

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


def copies_from_wire(message: Copies, numbers: Numbers, now_ms: int) -> list[HeldCopy]:
    """`now_ms`: on the clock by which the node knows when copies expire."""
    try:
        return unpack_copies(message, now_ms, numbers.own)
    except ColumnError as error:
        raise WireError(str(error)) from error


def copies_to_wire(copies: Sequence[HeldCopy], numbers: Numbers, now_ms: int) -> Copies:
    return pack_copies(copies, now_ms, numbers.ids.__getitem__)


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
