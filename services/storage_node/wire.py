"""Between messages of larder.v1 and the index's own values; the only module of the node that knows their shapes.

A master numbers segments for its reign: `Numbers` translates its ids to this node's and back. A message whose columns
do not fit together is refused whole (WireError), never half understood.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from larder.v1.node_pb2 import Copies, Forget
from larder.v1.types_pb2 import Keys

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


def copies_from_wire(message: Copies, numbers: Numbers) -> list[Copy]:
    keys = keys_from_wire(message.keys)
    columns = (
        message.write_ids, message.object_sizes, message.slice_counts, message.slices, message.segment_ids,
        message.offsets, message.lengths, message.checksums, message.depths,
    )  # fmt: skip
    lengths = {len(column) for column in columns}
    if lengths != {len(keys)}:
        raise WireError(f"copies of {len(keys)} keys come with columns of {sorted(lengths)} entries")
    return [
        Copy(key, write_id, size, slices, index, numbers.own(segment), offset, length, checksum, depth)
        for key, write_id, size, slices, index, segment, offset, length, checksum, depth in zip(
            keys, *columns, strict=True
        )
    ]


def copies_to_wire(copies: Sequence[Copy], numbers: Numbers) -> Copies:
    return Copies(
        keys=keys_to_wire([copy.key for copy in copies]),
        write_ids=[copy.write_id for copy in copies],
        object_sizes=[copy.object_size for copy in copies],
        slice_counts=[copy.slice_count for copy in copies],
        slices=[copy.slice for copy in copies],
        segment_ids=[numbers.ids[copy.segment] for copy in copies],
        offsets=[copy.offset for copy in copies],
        lengths=[copy.length for copy in copies],
        checksums=[copy.checksum for copy in copies],
        depths=[copy.depth for copy in copies],
    )


def places_from_wire(message: Forget, numbers: Numbers) -> list[Place]:
    lengths = {len(message.segment_ids), len(message.offsets), len(message.write_ids)}
    if len(lengths) != 1:
        raise WireError(f"places to forget come with columns of {sorted(lengths)} entries")
    return [
        Place(numbers.own(segment), offset, write_id)
        for segment, offset, write_id in zip(message.segment_ids, message.offsets, message.write_ids, strict=True)
    ]


def keys_to_wire(keys: Sequence[bytes]) -> Keys:
    lengths = [len(key) for key in keys]
    data = b"".join(keys)
    if lengths and min(lengths) == max(lengths):
        return Keys(data=data, width=lengths[0])
    return Keys(data=data, lengths=lengths)


def keys_from_wire(message: Keys) -> list[bytes]:
    data = message.data
    if message.width:
        if len(data) % message.width or message.lengths:
            raise WireError(f"{len(data)} bytes of keys are not whole keys of {message.width} bytes")
        return [data[start : start + message.width] for start in range(0, len(data), message.width)]
    if sum(message.lengths) != len(data):
        raise WireError(f"keys of {sum(message.lengths)} bytes come with {len(data)} bytes")
    keys = []
    start = 0
    for length in message.lengths:
        keys.append(data[start : start + length])
        start += length
    return keys
