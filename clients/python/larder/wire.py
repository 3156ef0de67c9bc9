"""Keys as a column, packed and unpacked. Used on both ends of every call that names keys."""

import struct
from collections.abc import Sequence

from larder.keys import BATCH_KEYS_MAX
from larder.v1 import types_pb2


class ColumnError(ValueError):
    """The column's parts contradict each other."""


def pack_keys(keys: Sequence[bytes]) -> types_pb2.Keys:
    """Keys end to end; of one size (the usual case: hashes) without a length each."""
    data = b"".join(keys)
    lengths = set(map(len, keys))
    if len(lengths) == 1 and data:
        return types_pb2.Keys(data=data, width=lengths.pop())
    return types_pb2.Keys(data=data, lengths=[len(key) for key in keys])


def unpack_keys(column: types_pb2.Keys) -> list[bytes]:
    """The keys, in order; ColumnError when lengths and data do not agree."""
    data, width = column.data, column.width
    if width:
        if len(data) % width or column.lengths:
            raise ColumnError(f"keys: {len(data)} bytes are no whole number of keys of {width} bytes")
        one, count = f"{width}s", len(data) // width
        if count <= BATCH_KEYS_MAX:  # the usual case, in half the time; a longer format takes more memory than the keys
            return list(struct.Struct(one * count).unpack(data))
        return [key for (key,) in struct.iter_unpack(one, data)]
    keys = []
    start = 0
    for length in column.lengths:
        keys.append(data[start : start + length])
        start += length
    if start != len(data):
        raise ColumnError(f"keys: lengths add up to {start} bytes, data has {len(data)}")
    return keys
