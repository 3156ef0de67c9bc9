"""How long `larder drain` waits, and what it says in the end, on a clock that goes on by a second a look."""

from types import SimpleNamespace
from typing import Any

import pytest
from larder.cli import draining
from larder.errors import DeadlineExceeded, LarderError
from larder.v1.master_pb2 import NodeStatus, StatusReply

OTHER = NodeStatus(node_id="other", state="attached")
GONE = StatusReply(epoch=1, nodes=[OTHER])


def left(objects: int, without_room: int = 0, state: str = "attached", draining: bool = True) -> StatusReply:
    node = NodeStatus(
        node_id="node", state=state, draining=draining, drain_objects=objects, drain_without_room=without_room
    )
    return StatusReply(epoch=1, nodes=[OTHER, node])


async def drain(monkeypatch: pytest.MonkeyPatch, *script: StatusReply, deadline: float = 100.0) -> float:
    """The time at which it returned; the script's last reply is given for ever."""
    now = 0.0
    replies = list(script)

    async def status(**_: Any) -> StatusReply:
        nonlocal now
        now += 1
        return replies.pop(0) if len(replies) > 1 else replies[0]

    monkeypatch.setattr(draining, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(draining, "POLL_S", 0)
    await draining.drained(SimpleNamespace(status=status), "node", deadline)  # type: ignore[arg-type]
    return now


async def test_it_ends_when_the_node_has_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await drain(monkeypatch, left(3), left(1), left(0), GONE) == 4
    said = ["3 objects left", "1 object left", "0 objects left"]
    assert capsys.readouterr().err.splitlines() == [f"node: {each}" for each in said]


async def test_a_drain_that_moves_is_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a full cluster nothing finds room at any moment, and yet room is made, bit by bit."""
    slow = [left(count, count) for count in (5, 4, 3, 2, 1) for _ in range(3)]
    assert await drain(monkeypatch, *slow, left(0), GONE) == len(slow) + 2


async def test_a_drain_that_does_not_move_is_told_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LarderError, match="no room on other nodes for 2 objects of node: add nodes"):
        await drain(monkeypatch, left(2, 2), deadline=1 + 2 + draining.STUCK_S)


async def test_what_still_finds_room_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeadlineExceeded, match="not empty yet; the drain goes on"):
        await drain(monkeypatch, left(2, 1))


async def test_a_drain_that_was_called_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LarderError, match="called off"):
        await drain(monkeypatch, left(2), left(2, draining=False))


async def test_a_node_that_was_lost_is_not_called_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LarderError, match="lost before it was empty"):
        await drain(monkeypatch, left(2), left(2, state="suspect"), GONE)


NEW = StatusReply(epoch=2, nodes=[OTHER])


def on_new(reply: StatusReply) -> StatusReply:
    """The same from the master's next life."""
    return StatusReply(epoch=2, nodes=reply.nodes)


async def test_a_new_master_that_does_not_know_the_node_yet_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeadlineExceeded):
        await drain(monkeypatch, left(2), NEW, deadline=draining.ABSENT_S)


async def test_a_drain_outlasts_the_master(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose node was silent when the master went; what counts is what its next life has seen."""
    script = [left(2), left(2, state="suspect"), NEW, NEW, on_new(left(2)), on_new(left(0))]
    assert await drain(monkeypatch, *script, NEW) == len(script) + 1


async def test_a_node_that_never_comes_back_to_the_new_master_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LarderError, match="did not come back to the restarted master within 60 s: its log"):
        await drain(monkeypatch, left(2), NEW)


@pytest.mark.parametrize("wait_s", [0.0, 3.5])
async def test_who_waits_no_longer_is_told_that_the_node_is_not_empty(
    monkeypatch: pytest.MonkeyPatch, wait_s: float
) -> None:
    """Not that the master did not answer: it is asked, and given its time, however little is left."""
    deadlines: list[float] = []

    async def status(deadline: float) -> StatusReply:
        deadlines.append(deadline)
        return left(3)

    monkeypatch.setattr(draining, "POLL_S", 0.1)
    monkeypatch.setattr(draining, "time", SimpleNamespace(monotonic=lambda: float(len(deadlines))))
    with pytest.raises(DeadlineExceeded, match="node is not empty yet"):
        await draining.drained(SimpleNamespace(status=status), "node", wait_s)  # type: ignore[arg-type]
    assert all(deadline - looked == draining.CALL_S for looked, deadline in enumerate(deadlines))
