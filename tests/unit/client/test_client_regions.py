"""Registered memory: found by address, never overlapping."""

import pytest
from larder.errors import InvalidArgument
from larder.memory import Memory, destination
from larder.transports.regions import Regions


def at(*pieces: tuple[int, int]) -> Memory:
    return Memory(pieces, sum(length for _, length in pieces), None)


def test_cover() -> None:
    regions = Regions()
    regions.add(at((100, 50), (300, 10)))
    for inside in (at((100, 50)), at((110, 1)), at((149, 1), (300, 10)), at((120, 0))):
        assert regions.cover(inside)
    for outside in (at((99, 2)), at((149, 2)), at((0, 1)), at((310, 1)), at((110, 1), (200, 1))):
        assert not regions.cover(outside)
    regions.remove(at((100, 50)))
    assert not regions.cover(at((110, 1)))
    assert regions.cover(at((300, 10)))
    assert regions.pieces() == [(300, 10)]


@pytest.mark.parametrize("piece", [(100, 50), (90, 11), (149, 5), (110, 5), (50, 200)])
def test_overlaps_are_refused(piece: tuple[int, int]) -> None:
    regions = Regions()
    regions.add(at((100, 50)))
    with pytest.raises(InvalidArgument, match="registered already"):
        regions.add(at(piece))
    regions.add(at((150, 5)))
    regions.add(at((90, 10)))


def test_what_is_not_registered_is_not_unregistered() -> None:
    regions = Regions()
    regions.add(at((100, 50)))
    for other in (at((100, 49)), at((101, 49))):
        with pytest.raises(InvalidArgument, match="not registered"):
            regions.remove(other)


def test_registered_memory_is_kept_alive() -> None:
    regions = Regions()
    buffer = bytearray(10)
    regions.add(destination(buffer))
    with pytest.raises(BufferError):
        buffer.extend(b"x")
    regions.remove(destination(buffer))
    buffer.extend(b"x")
