"""Fetches the master orders: what is acknowledged as what, and what a Forget does to one that is under way."""

import asyncio
from typing import Any

from larder.v1.node_pb2 import Fetch
from larder.v1.types_pb2 import Segment

from services.storage_node.core.index import DONE, Answer, Outcome
from services.storage_node.wire import Numbers, copies_to_wire
from tests.unit.storage_node.agents import a_copy, forget, run_node


def fetch(command_id: int, number: int) -> Fetch:
    copies = copies_to_wire([a_copy(number)], Numbers((7,)), 0)
    return Fetch(command_id=command_id, copies=copies, source=Segment(id=9, node_id="n2"), timeout_ms=5000)


async def test_what_became_of_a_fetch_is_said_apart(master: Any) -> None:
    async with run_node(master) as node:
        stream = await master.stream()
        await stream.welcome()
        node.agent._fetcher.side_effect = [DONE, Answer(Outcome.REJECTED, "x"), Answer(Outcome.CORRUPT, "y")]
        said = []
        for number in range(3):
            stream.say(1, fetch=fetch(10 + number, number))
            ack = await stream.expect("ack")
            failed = list(zip(ack.failed_command_ids, ack.failed_reasons, strict=True))
            said.append((list(ack.command_ids), failed, list(ack.corrupt_command_ids)))
        assert said == [([10], [], []), ([], [(11, "x")], []), ([], [], [12])]
        assert len(node.index) == 1


async def test_a_fetch_whose_place_is_to_be_forgotten_ends_before_that_is_acknowledged(master: Any) -> None:
    async with run_node(master) as node:
        stream = await master.stream()
        await stream.welcome()
        begun, ended = asyncio.Event(), asyncio.Event()

        async def never(*_: object) -> Answer:
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()
            return DONE

        node.agent._fetcher.side_effect = never
        stream.say(1, fetch=fetch(10, 0))
        stream.say(1, fetch=fetch(11, 1))
        async with asyncio.timeout(20):
            await begun.wait()
        stream.say(1, forget=forget(12, a_copy(0)))
        ack = await stream.expect("ack")
        assert list(ack.command_ids) == [12]
        assert ended.is_set(), "it could still land where another put is written by now"
        assert not len(node.index)


async def test_what_was_ordered_before_the_master_began_a_later_epoch_is_still_done(master: Any) -> None:
    async with run_node(master) as node:
        stream = await master.stream()
        await stream.welcome()
        going_on = asyncio.Event()

        async def slow(*_: object) -> Answer:
            await going_on.wait()
            return DONE

        node.agent._fetcher.side_effect = slow
        stream.say(1, fetch=fetch(10, 0))
        stream.say(2, forget=forget(11, a_copy(5)))
        assert list((await stream.expect("ack")).command_ids) == [11]
        going_on.set()
        assert list((await stream.expect("ack")).command_ids) == [10]
        assert len(node.index) == 1
