"""Records of copies as the columns of `larder.v1.Copies`, packed and unpacked for master and storage node alike.

Two things differ between the ends. Clocks: what is left of a copy's life is sent. Numbers of segments: the master's are
sent, and the node translates.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from larder.v1.node_pb2 import Copies
from larder.wire import ColumnError, pack_keys, unpack_keys

from services.common.held import HeldCopy

_DESCRIPTOR: Any = Copies.DESCRIPTOR
_COLUMNS: Final = [field.name for field in sorted(_DESCRIPTOR.fields, key=lambda field: field.number)]
_SEGMENT, _EXPIRES = HeldCopy._fields.index("segment"), HeldCopy._fields.index("expires_ms")
_OPTIONAL: Final = [n for n, name in enumerate(HeldCopy._fields) if HeldCopy._field_defaults.get(name) == 0]


def pack_copies(copies: Sequence[HeldCopy], now_ms: int, number: Callable[[int], int] | None = None) -> Copies:
    """`now_ms`: on the records' clock. `number`: the master's of a segment, where the records have another."""
    if not copies:
        return Copies()
    columns: list[Any] = list(zip(*copies, strict=True))
    for index in _OPTIONAL:
        if not any(columns[index]):
            columns[index] = ()
    if number is not None:
        columns[_SEGMENT] = list(map(number, columns[_SEGMENT]))
    columns[_EXPIRES] = [max(1, end - now_ms) if end else 0 for end in columns[_EXPIRES]]
    return Copies(keys=pack_keys(columns[0]), **dict(zip(_COLUMNS[1:], columns[1:], strict=True)))


def unpack_copies(message: Copies, now_ms: int, own: Callable[[int], int] | None = None) -> list[HeldCopy]:
    """The other way round: `own` gives the number that a record is to have. ColumnError where columns disagree."""
    keys = unpack_keys(message.keys)
    columns: list[Any] = [keys, *(getattr(message, name) for name in _COLUMNS[1:])]
    for index in _OPTIONAL:
        columns[index] = columns[index] or [0] * len(keys)
    lengths = set(map(len, columns))
    if lengths != {len(keys)}:
        raise ColumnError(f"copies of {len(keys)} keys come with columns of {sorted(lengths)} entries")
    if own is not None:
        numbers = {number: own(number) for number in set(columns[_SEGMENT])}
        columns[_SEGMENT] = map(numbers.__getitem__, columns[_SEGMENT])
    columns[_EXPIRES] = [now_ms + left_ms if left_ms else 0 for left_ms in columns[_EXPIRES]]
    return list(map(HeldCopy, *columns))
