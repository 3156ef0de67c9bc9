"""Which master a node goes to where it names several, and when it changes: what the survey says, scripted."""

import asyncio
from collections.abc import Sequence

import pytest
from larder.masters import Seen, in_charge, warnings

from services.storage_node import masters
from services.storage_node.masters import Elsewhere, Masters, choose

A, B, C = "a:1", "b:1", "c:1"


@pytest.mark.parametrize(
    ("seen", "order"),
    [
        ([Seen(A), Seen(B)], [A, B]),
        ([Seen(A), Seen(B, nodes=1)], [B]),
        ([Seen(A, nodes=2, epoch=1), Seen(B, nodes=1, epoch=9)], [A]),
        ([Seen(A, nodes=2, epoch=1), Seen(B, nodes=2, epoch=9)], [B]),
        ([Seen(A, trouble="refused"), Seen(B), Seen(C)], [B, C, A]),
        ([Seen(A, trouble="refused"), Seen(B, nodes=1)], [B]),
        ([Seen(A, trouble="refused"), Seen(B, trouble="refused")], [A, B]),
    ],
)
def test_nodes_go_where_nodes_are_else_to_the_first_that_answers(seen: list[Seen], order: list[str]) -> None:
    assert choose(seen) == order


def test_all_judge_alike_whatever_the_order_of_their_addresses() -> None:
    seen = [Seen(A, nodes=2, epoch=3), Seen(B, nodes=2, epoch=5), Seen(C, nodes=1, epoch=9)]
    assert {in_charge(order) for order in (seen, seen[::-1], [seen[1], seen[2], seen[0]])} == {seen[1]}


class Script:
    """What each survey says in turn; the last for good."""

    def __init__(self, *said: list[Seen]) -> None:
        self.said = list(said)
        self.asked = 0

    async def __call__(self, addresses: Sequence[str], wait_s: float) -> list[Seen]:
        self.asked += 1
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]


async def test_a_node_that_sits_with_the_lesser_part_comes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    split = [Seen(A, nodes=1, epoch=9), Seen(B, nodes=2, epoch=1)]
    script = Script([Seen(A, nodes=1, epoch=9), Seen(B)], split)
    monkeypatch.setattr(masters, "survey", script)
    with pytest.raises(Elsewhere, match="the master at b:1 has 2 nodes, this one 1"):
        await asyncio.wait_for(Masters([A, B], recheck_s=0.01).watch(A), 5)
    assert script.asked == 2


@pytest.mark.parametrize(
    "seen",
    [
        [Seen(A, nodes=2, epoch=1), Seen(B, nodes=1, epoch=9)],
        [Seen(A, nodes=1, epoch=9), Seen(B, trouble="refused")],
        [Seen(A, trouble="it hangs"), Seen(B, nodes=5)],  # its stream will tell
    ],
)
async def test_a_node_stays_otherwise(monkeypatch: pytest.MonkeyPatch, seen: list[Seen]) -> None:
    script = Script(seen)
    monkeypatch.setattr(masters, "survey", script)
    watching = asyncio.create_task(Masters([A, B], recheck_s=0.01).watch(A))
    async with asyncio.timeout(5):
        while script.asked < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not watching.done()
    watching.cancel()


async def test_a_node_with_one_master_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([])
    monkeypatch.setattr(masters, "survey", script)
    alone = Masters([A], recheck_s=0.0)
    assert await alone.candidates() == [A]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(alone.watch(A), 0.05)
    assert script.asked == 0


def test_operators_are_warned_of_what_is_not_as_it_should_be() -> None:
    assert warnings([Seen(A, nodes=1)]) == []
    (alone,) = warnings([Seen(A)])
    assert "a:1 has no storage node" in alone
    several, down = warnings([Seen(A, nodes=1), Seen(B, nodes=2), Seen(C, trouble="refused")])
    assert "several masters have storage nodes: a:1 (1), b:1 (2)" in several
    assert "c:1 does not answer: refused" in down
    (standby,) = warnings([Seen(A), Seen(B, nodes=2)])
    assert "a:1 answers, but has no storage node: it stands by" in standby
