"""The node's values on the wire and back."""

import pytest
from larder.pool_file import PoolHeader
from larder.v1.node_pb2 import Copies, Forget
from larder.v1.types_pb2 import Keys

from services.common.held import HeldCopy
from services.common.version import VERSION
from services.storage_node.core.index import Place
from services.storage_node.wire import (
    Numbers,
    Reachable,
    WireError,
    copies_from_wire,
    copies_to_wire,
    hello_to_wire,
    places_from_wire,
)

NUMBERS = Numbers((70, 71))
COPIES = [
    HeldCopy(b"a", 2**64 - 1, 100, 2, 1, 0, 0, 36, 2**64 - 1, 3),
    HeldCopy(b"bcd", 5, 64, 1, 0, 1, 2**40, 64, 0, 0),
]


@pytest.mark.parametrize("copies", [COPIES, COPIES[:1], []])
def test_copies_come_back_as_they_went(copies: list[HeldCopy]) -> None:
    message = Copies.FromString(copies_to_wire(copies, NUMBERS, 0).SerializeToString())
    assert copies_from_wire(message, NUMBERS, 0) == copies


def test_the_wire_has_the_masters_segment_ids() -> None:
    assert list(copies_to_wire(COPIES, NUMBERS, 0).segment_ids) == [70, 71]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Copies(keys=Keys(data=b"ab", width=1), write_ids=[1]), "come with columns of"),
        (Copies(keys=Keys(data=b"abc", width=2)), "3 bytes"),
        (Copies(keys=Keys(data=b"abc", lengths=[1])), "3"),
    ],
)
def test_columns_that_do_not_fit_are_refused(message: Copies, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        copies_from_wire(message, NUMBERS, 0)


def test_segments_of_others_are_refused() -> None:
    with pytest.raises(WireError, match="segment 70 was not given to this node"):
        copies_from_wire(copies_to_wire(COPIES, NUMBERS, 0), Numbers((71,)), 0)


def test_places() -> None:
    assert places_from_wire(Forget(segment_ids=[71], offsets=[9], write_ids=[5]), NUMBERS) == [Place(1, 9, 5)]
    watched = Forget(segment_ids=[71], offsets=[9], write_ids=[5], lengths=[64])
    assert places_from_wire(watched, NUMBERS) == [Place(1, 9, 5, 64)]
    with pytest.raises(WireError, match="places to forget come with columns of"):
        places_from_wire(Forget(segment_ids=[71], offsets=[9]), NUMBERS)
    with pytest.raises(WireError, match="places to forget come with columns of"):
        places_from_wire(Forget(segment_ids=[71], offsets=[9], write_ids=[5], lengths=[64, 64]), NUMBERS)


@pytest.mark.parametrize("ids", [[], [1], [1, 2, 3], [1, 1]])
def test_a_welcome_must_number_every_segment(ids: list[int]) -> None:
    with pytest.raises(WireError, match="this node announced 2"):
        Numbers.welcomed(ids, 2)


def test_a_node_without_an_engine_announces_none() -> None:
    hello = hello_to_wire("n1", "/pools/n1", PoolHeader(4096, b"t" * 16, 3), Reachable())
    (segment,) = hello.segments
    assert (hello.version, segment.engine_endpoint, segment.engine_base) == (VERSION, "", 0)


def test_lives_cross_as_what_is_left_of_them() -> None:
    held = [COPIES[0]._replace(expires_ms=5000, pin=2), COPIES[1]]
    sent = copies_to_wire(held, NUMBERS, 4000)
    assert (list(sent.ttls_ms), list(sent.pins)) == ([1000, 0], [2, 0])
    assert [copy.expires_ms for copy in copies_from_wire(sent, NUMBERS, 70_000)] == [71_000, 0]
    assert list(copies_to_wire(held, NUMBERS, 9000).ttls_ms) == [1, 0], "over, and the master's to end"
    plain = copies_to_wire(COPIES, NUMBERS, 4000)
    assert not plain.ttls_ms
    assert not plain.pins
