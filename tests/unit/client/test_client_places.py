"""The wire's columns of places as values, and what is refused."""

import pytest
from larder.errors import LarderError
from larder.places import Copy, Slice, unpack
from larder.v1 import types_pb2


def two_objects() -> types_pb2.Places:
    """Of 2 and 1 slices, with a miss between them."""
    segments = [
        types_pb2.Segment(id=7, node_id="a", capacity_bytes=100, shm_token=b"a" * 16),
        types_pb2.Segment(id=9, node_id="b", capacity_bytes=50, shm_token=b"b" * 16),
    ]
    return types_pb2.Places(
        segments=segments,
        slice_counts=[2, 0, 1],
        slice_lengths=[10, 20, 30],
        checksums=[1, 2, 3],
        copy_counts=[2, 1, 0],
        copy_segments=[0, 1, 0],
        copy_offsets=[5, 40, 80],
    )


def test_unpack() -> None:
    first, miss, last = unpack(two_objects())
    a, b = first[0].copies[0].segment, first[0].copies[1].segment
    assert (a.id, a.node_id, b.id, b.node_id) == (7, "a", 9, "b")
    assert first == [Slice(10, 1, [Copy(a, 5), Copy(b, 40)]), Slice(20, 2, [Copy(a, 80)])]
    assert miss == []
    assert last == [Slice(30, 3, [])]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("slice_counts", [2, 0, 2]),  # a slice too few
        ("slice_lengths", [10, 20]),
        ("copy_counts", [2, 1, 1]),
        ("copy_segments", [0, 1, 2]),  # no such segment
        ("copy_offsets", [5, 41, 80]),  # beyond the second segment's end
        ("copy_offsets", [5, 40]),
    ],
)
def test_columns_that_contradict_each_other(column: str, values: list[int]) -> None:
    places = two_objects()
    del getattr(places, column)[:]
    getattr(places, column).extend(values)
    with pytest.raises(LarderError, match="contradicts itself"):
        unpack(places)
