"""How `larder drain` waits for a node to be empty, even across restarts of the master. No click here but echo."""

import asyncio
import time
from typing import Final

import click

from larder.errors import DeadlineExceeded, LarderError
from larder.rpc import MasterClient
from larder.words import counted

CALL_S: Final = 10.0
"""What a master may take to answer, its restart included; so much later than the deadline it may end."""
POLL_S: Final = 0.5
ABSENT_S: Final = 60.0
"""A node that a restarted master has not seen for so long has ended."""
STUCK_S: Final = 3.0
"""A drain of which nothing finds room for so long is not going to end by itself."""


def goes_on(node_id: str) -> str:
    """What somebody who stops waiting has to know."""
    return f"the drain goes on by itself; larder drain --cancel {node_id} calls it off"


async def drained(client: MasterClient, node_id: str, deadline: float) -> None:
    """Returns when the node has gone; raises LarderError if it cannot go, or time runs out."""
    epoch, state, said, stuck_since, absent_since = None, "", None, None, None
    while True:
        reply = await client.status(deadline=time.monotonic() + CALL_S)
        now = time.monotonic()
        found = next((node for node in reply.nodes if node.node_id == node_id), None)
        if found is not None or epoch is None:
            epoch, absent_since = reply.epoch, None
        if found is None and reply.epoch == epoch:
            if state == "suspect":
                raise LarderError(f"{node_id} was lost before it was empty; what had no other copy is lost with it")
            return
        if found is None:  # the master was restarted
            absent_since = absent_since or now
            if now - absent_since > ABSENT_S:
                raise LarderError(
                    f"{node_id} did not come back to the restarted master within {ABSENT_S:.0f} s: "
                    "its log says whether it ended empty, or was lost before"
                )
        else:
            state, left = found.state, found.drain_objects
            if not found.draining:
                raise LarderError(f"the drain of {node_id} was called off")
            is_stuck = 0 < left == found.drain_without_room and left == said  # else room is being made, bit by bit
            stuck_since = (stuck_since or now) if is_stuck else None
            if stuck_since is not None and now - stuck_since > STUCK_S:
                raise LarderError(
                    f"no room on other nodes for {counted(left, 'object')} of {node_id}: add nodes or remove objects; "
                    f"{goes_on(node_id)}"
                )
            if left != said:
                rest_s = reply.rest_left_ms / 1000
                waits = f"; what is free elsewhere rests for {rest_s:.0f} s more" if rest_s else ""
                click.echo(f"{node_id}: {counted(left, 'object')} left{waits}", err=True)
                said = left
        if now >= deadline:
            raise DeadlineExceeded(f"{node_id} is not empty yet; {goes_on(node_id)}")
        await asyncio.sleep(POLL_S)
