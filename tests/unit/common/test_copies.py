"""Records of copies as columns, and back."""

import pytest
from larder.v1.node_pb2 import Copies
from larder.v1.types_pb2 import Keys
from larder.wire import ColumnError

from services.common.copies import pack_copies, unpack_copies
from services.common.held import HeldCopy

COPIES = [
    HeldCopy(b"a", 2**64 - 1, 100, 2, 1, 70, 0, 36, 2**64 - 1, 3, 2, 9000, 1),
    HeldCopy(b"bcd", 5, 64, 1, 0, 71, 2**40, 64, 0, 0),
]


@pytest.mark.parametrize("copies", [COPIES, COPIES[:1], COPIES[1:], []])
def test_records_come_back_as_they_went(copies: list[HeldCopy]) -> None:
    message = Copies.FromString(pack_copies(copies, 4000).SerializeToString())
    assert unpack_copies(message, 4000) == copies


def test_every_field_has_its_column() -> None:
    sent = pack_copies(COPIES[:1], 4000)
    columns = {
        "write_ids": 2**64 - 1, "object_sizes": 100, "slice_counts": 2, "slices": 1, "segment_ids": 70, "offsets": 0,
        "lengths": 36, "checksums": 2**64 - 1, "depths": 3, "wanted": 2, "ttls_ms": 5000, "pins": 1,
    }  # fmt: skip
    assert {field.name for field in sent.DESCRIPTOR.fields} == {"keys", *columns}
    assert sent.keys.data == b"a"
    assert {name: list(getattr(sent, name)) for name in columns} == {name: [value] for name, value in columns.items()}


def test_each_end_has_its_own_numbers_and_its_own_clock() -> None:
    sent = pack_copies([copy._replace(segment=copy.segment - 70) for copy in COPIES], 4000, [70, 71].__getitem__)
    assert list(sent.segment_ids) == [70, 71]
    there = unpack_copies(sent, 70_000, lambda number: number + 5)
    assert [(copy.segment, copy.expires_ms) for copy in there] == [(75, 75_000), (76, 0)]


def test_a_life_that_is_over_is_not_one_without_end() -> None:
    assert list(pack_copies(COPIES, 9500).ttls_ms) == [1, 0]


def test_columns_of_nothing_are_left_out() -> None:
    sent = pack_copies(COPIES[1:], 0)
    assert not sent.ttls_ms
    assert not sent.pins
    assert list(sent.depths) == [0], "an older peer counts on it"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Copies(keys=Keys(data=b"ab", width=1), write_ids=[1]), "come with columns of"),
        (Copies(keys=Keys(data=b"abc", width=2)), "3 bytes"),
        (Copies(keys=Keys(data=b"abc", lengths=[1])), "3"),
    ],
)
def test_columns_that_do_not_fit_are_refused(message: Copies, reason: str) -> None:
    with pytest.raises(ColumnError, match=reason):
        unpack_copies(message, 0)
