"""What a node does whose id another process has."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from larder.v1.node_pb2 import Refuse

from services.storage_node.stream import IdTaken
from tests.unit.storage_node.agents import QUICK, Node, run_node

REASON = "node id n1 belongs to a storage node on there"
TAKEN = Refuse(reason=REASON, id_taken=True)


async def test_it_gives_up_when_it_was_refused_for_long_and_had_never_attached(master: Any) -> None:
    node = Node([master.address], replace(QUICK, refused_s=0.2))
    running = asyncio.create_task(node.agent.run(node.stop))
    refusals = 0
    while not running.done():
        taking = asyncio.create_task(master.stream())
        await asyncio.wait([running, taking], return_when=asyncio.FIRST_COMPLETED)
        if taking.done():
            taking.result().say(1, refuse=TAKEN)
            refusals += 1
        else:
            taking.cancel()
    assert refusals > 2
    with pytest.raises(IdTaken, match=REASON):
        await running


@pytest.mark.parametrize("before", ["another trouble", "an attachment"])
async def test_it_goes_on_trying_where_that_may_pass(master: Any, before: str) -> None:
    async with run_node(master, patience=replace(QUICK, refused_s=0.1 if before == "an attachment" else 60.0)) as node:
        if before == "an attachment":
            stream = await master.stream()
            await stream.welcome()
            await node.until(node.agent.attached.is_set)
            stream.end()
        for _ in range(10):
            refused = await master.stream()
            refused.say(1, refuse=TAKEN)
            await asyncio.sleep(0.02)
        await (await master.stream()).welcome()
        await node.until(node.agent.attached.is_set)
