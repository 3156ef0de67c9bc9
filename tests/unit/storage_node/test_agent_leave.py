"""How the node's agent ends: with a farewell, without one, and at once where it is not attached."""

import asyncio
import logging
from typing import Any

import pytest
from larder.v1.node_pb2 import Drain, Farewell

from services.storage_node.attachment import Patience
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


async def test_a_drained_node_ends_at_the_farewell_and_tells_every_master_until_then(master: Any) -> None:
    node = Node([master.address], QUICK)
    running = asyncio.create_task(node.agent.run(node.stop))
    stream = await master.stream()
    (hello,) = await stream.welcome()
    assert not hello.draining
    for draining in (True, False, True):
        stream.say(1, drain=Drain(draining=draining))
    stream.end()
    stream = await master.stream()
    (hello,) = await stream.welcome()
    assert hello.draining
    stream.say(1, farewell=Farewell())
    async with asyncio.timeout(5):
        await running
    assert node.stop.is_set()


async def test_a_farewell_nobody_waits_for_ends_the_stream_only(master: Any, caplog: pytest.LogCaptureFixture) -> None:
    node = Node([master.address], QUICK)
    running = asyncio.create_task(node.agent.run(node.stop))
    stream = await master.stream()
    await stream.welcome()
    for draining in (True, False):
        stream.say(1, drain=Drain(draining=draining))
    stream.say(1, farewell=Farewell())
    await (await master.stream()).welcome()
    assert "a farewell out of turn" in caplog.text
    running.cancel()
    await asyncio.wait([running])


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
