"""Which copy is read first: the caller's host, then its zone, then whichever node has least to do."""

from typing import Any

import pytest
from larder.host import host_id
from larder.mover import Mover
from larder.places import Copy, Segment
from larder.stats import Stats
from larder.transports import Reach


class Everywhere:
    """A transport that leads to every segment."""

    name = "engine"

    def reach(self, segment: Segment) -> Reach:
        return Reach.DOUBTFUL if segment.node_id == "doubtful" else Reach.GOOD


def copy(node: str, *, host: str = "elsewhere", zone: str = "") -> Copy:
    return Copy(Segment(1, node, 1000, "", node.encode(), 0, "", 0, "tcp", host, zone), 0)


@pytest.mark.parametrize(
    ("zone", "copies", "best"),
    [
        ("a", [copy("other", zone="b"), copy("zone", zone="a")], "zone"),
        ("a", [copy("zone", zone="a"), copy("host", host=host_id(), zone="b")], "host"),
        ("a", [copy("doubtful", host=host_id()), copy("other", zone="b")], "other"),
        ("", [copy("busy"), copy("other")], "other"),
        ("", [copy("busy", zone="a"), copy("other", zone="b")], "other"),
    ],
)
def test_the_nearest_copy_is_read_first(zone: str, copies: list[Copy], best: str) -> None:
    mover = Mover([], Stats(), zone)
    transport: Any = Everywhere()
    mover._transports = [transport]
    mover.plan(copy("busy").segment, 100)
    for order in (copies, copies[::-1]):
        chosen = mover.best(order)
        assert chosen is not None
        assert chosen[0].segment.node_id == best
