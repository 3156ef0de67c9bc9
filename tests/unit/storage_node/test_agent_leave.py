"""How the node's agent ends: with a farewell, without one, and at once where it is not attached."""

import asyncio
import logging
from typing import Any

import pytest
from larder.v1.node_pb2 import Farewell

from services.storage_node.agent import Patience
from tests.unit.storage_node.agents import QUICK, Node, a_copy, record


async def test_it_leaves_with_a_farewell_and_obeys_until_then(master: Any) -> None:
    node = Node([master.address], QUICK)
    running = asyncio.create_task(node.agent.run(node.stop))
    stream = await master.stream()
    await stream.welcome()
    await node.until(node.agent.attached.is_set)
    node.stop.set()
    await stream.expect("leave")
    stream.say(1, record=record(1, a_copy(0)))
    assert list((await stream.expect("ack")).command_ids) == [1]
    assert not running.done()
    stream.say(1, farewell=Farewell())
    async with asyncio.timeout(1):  # and not only when the patience for it is over
        await running
    assert not node.agent.attached.is_set()


async def test_it_leaves_without_a_farewell_after_a_while(master: Any, caplog: pytest.LogCaptureFixture) -> None:
    node = Node([master.address], Patience(farewell_s=0.2))
    running = asyncio.create_task(node.agent.run(node.stop))
    stream = await master.stream()
    await stream.welcome()
    node.stop.set()
    await stream.expect("leave")
    async with asyncio.timeout(20):
        await running
    assert "no farewell in 0.2 s" in caplog.text


async def test_it_stops_at_once_while_it_waits_for_the_next_attempt() -> None:
    node = Node(["127.0.0.1:1"], Patience(retry_s_min=60.0, retry_s_max=60.0))
    running = asyncio.create_task(node.agent.run(node.stop))
    await node.until(lambda: node.metric("attach_attempts_total", result="failed") == 1)
    node.stop.set()
    async with asyncio.timeout(5):
        await running


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
