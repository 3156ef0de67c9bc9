"""The node's agent against masters that the test plays, over real gRPC."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from larder.v1.node_pb2 import Copies, MasterMessage, Ping, Record, Refuse, Welcome

from services.storage_node import attachment
from services.storage_node.attachment import Patience
from services.storage_node.wire import Numbers, copies_to_wire
from tests.unit.storage_node.agents import CAPACITY, a_copy, forget, record, run_node

StartMaster = Callable[..., Awaitable[Any]]


async def test_it_says_hello_and_is_attached_after_its_inventory(master: Any) -> None:
    async with run_node(master) as node:
        stream = await master.stream()
        assert not node.agent.attached.is_set()
        (hello,) = await stream.welcome(epoch=3)
        assert (hello.node_id, hello.incarnation, hello.epoch) == ("n1", 42, 0)
        (segment,) = hello.segments
        assert (segment.capacity_bytes, segment.shm_path, segment.shm_token) == (
            CAPACITY,
            "/pools/n1",
            b"t" * 16,
        )
        assert (segment.shm_data_offset, segment.engine_endpoint) == (4096, "127.0.0.1:9")
        assert hello.host_id == segment.host_id != ""
        await node.until(node.agent.attached.is_set)
        assert (node.metric("attached"), node.metric("epoch")) == (1, 3)
        assert node.metric("attach_attempts_total", result="attached") == 1
        assert node.metric("capacity_bytes", tier="dram") == CAPACITY


async def test_it_beats_at_the_masters_pace(master: Any) -> None:
    async with run_node(master):
        stream = await master.stream()
        await stream.welcome(heartbeat_ms=20)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for _ in range(10):
            await stream.expect("heartbeat")
        assert 0.15 < loop.time() - begun < 5


async def test_it_says_a_word_at_once_when_it_is_asked_for_one(master: Any) -> None:
    async with run_node(master):
        stream = await master.stream()
        await stream.welcome(heartbeat_ms=60_000)
        for _ in range(2):
            stream.say(1, ping=Ping())
            await stream.expect("heartbeat")


async def test_it_records_forgets_and_acknowledges(master: Any) -> None:
    async with run_node(master) as node:
        stream = await master.stream()
        await stream.welcome(epoch=3)
        stream.say(3, record=record(11, a_copy(0), a_copy(1)))
        ack = await stream.expect("ack")
        assert (ack.epoch, list(ack.command_ids)) == (3, [11])
        assert (len(node.index), node.metric("held_bytes", tier="dram"), node.metric("copies", tier="dram")) == (
            2,
            128,
            2,
        )
        stream.say(3, forget=forget(12, a_copy(0), a_copy(5)))  # the second is not held
        assert list((await stream.expect("ack")).command_ids) == [12]
        assert len(node.index) == 1
        assert node.metric("commands_total", kind="record", result="done") == 1
        assert node.metric("commands_total", kind="forget", result="done") == 1


async def test_it_forgets_what_may_be_written_only_when_nobody_writes_there(master: Any) -> None:
    async with run_node(master) as node:
        stream = await master.stream()
        await stream.welcome(epoch=3)
        node.writers = {64}
        stream.say(3, forget=forget(11, a_copy(0), a_copy(1), watched=True))
        stream.say(3, forget=forget(12, a_copy(2), watched=True))
        stream.say(3, record=record(13, a_copy(5)))  # others do not wait
        stream.say(3, forget=forget(14, a_copy(1)))  # nor does what is not asked about writers
        acked: set[int] = set()
        while len(acked) < 3:
            acked |= set((await stream.expect("ack")).command_ids)
        assert acked == {12, 13, 14}
        looks = node.looks
        await node.until(lambda: node.looks > looks + 5)
        node.writers = set()
        assert list((await stream.expect("ack")).command_ids) == [11]


async def test_waiting_for_a_writer_ends_with_the_stream(master: Any) -> None:
    async with run_node(master) as node:
        stream = await master.stream()
        await stream.welcome(epoch=3)
        node.writers = {64}
        stream.say(3, forget=forget(11, a_copy(1), watched=True))
        await node.until(lambda: node.looks > 1)
        stream.end()
        second = await master.stream()
        await second.welcome(epoch=3)
        node.writers = set()
        looks = node.looks
        second.say(3, forget=forget(12, a_copy(1), watched=True))
        assert list((await second.expect("ack")).command_ids) == [12]
        assert node.looks == looks + 1


async def test_every_command_is_acknowledged_once_and_acks_are_batched(master: Any) -> None:
    async with run_node(master) as node:
        stream = await master.stream()
        await stream.welcome()
        count = 6000  # more than may wait
        for number in range(count):
            stream.say(1, record=record(number, a_copy(number)))
        acked: list[int] = []
        messages = 0
        while len(acked) < count:
            acked += (await stream.expect("ack")).command_ids
            messages += 1
        assert acked == list(range(count))
        assert messages < count
        assert len(node.index) == count


async def test_a_new_stream_is_told_everything_in_chunks_and_by_its_own_segment_ids(
    master: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "INVENTORY_CHUNK_COPIES", 2)
    copies = [a_copy(0), a_copy(1, key=b"longer key"), a_copy(2)]
    async with run_node(master) as node:
        stream = await master.stream()
        await stream.welcome(epoch=3, segment_id=7)
        stream.say(3, record=record(1, *copies))
        await stream.expect("ack")
        stream.end()
        second = await master.stream()
        assert not node.agent.attached.is_set()
        hello, *chunks = await second.welcome(epoch=4, segment_id=900)
        assert (hello.epoch, hello.incarnation) == (3, 42)
        assert chunks == [
            copies_to_wire(copies[:2], Numbers((900,)), 0),
            copies_to_wire(copies[2:], Numbers((900,)), 0),
        ]
        second.say(4, forget=forget(2, copies[0], segment_id=900))
        await second.expect("ack")
        assert len(node.index) == 2


async def test_it_goes_on_when_the_master_restarts(master: Any, start_master: StartMaster) -> None:
    async with run_node(master) as node:
        await (await master.stream()).welcome()
        await node.until(node.agent.attached.is_set)
        port = int(master.address.rpartition(":")[2])
        await master.stop()
        await node.until(lambda: node.metric("attach_attempts_total", result="failed") >= 3)
        assert node.metric("attached") == 0
        reborn = await start_master(port)
        await (await reborn.stream()).welcome(epoch=2)
        await node.until(node.agent.attached.is_set)


async def test_attempts_are_spaced(caplog: pytest.LogCaptureFixture) -> None:
    slow = Patience(retry_s_min=0.2, retry_s_max=0.4)
    async with run_node("127.0.0.1:1", patience=slow) as node:
        await asyncio.sleep(1.5)
        assert 2 <= node.metric("attach_attempts_total", result="failed") <= 9
    assert (
        len([record for record in caplog.records if "cannot attach" in record.message]) == 1
    )  # said once, not each time


async def test_a_message_of_an_old_epoch_is_ignored_and_counted(master: Any) -> None:
    async with run_node(master) as node:
        stream = await master.stream()
        await stream.welcome(epoch=5)
        stream.say(4, record=record(1, a_copy(0)))
        stream.say(4, forget=forget(2, a_copy(0)))
        stream.say(5, record=record(3, a_copy(1)))
        assert list((await stream.expect("ack")).command_ids) == [3]
        assert list(node.index.inventory(9)) == [[a_copy(1)]]
        assert node.metric("commands_total", kind="record", result="old_epoch") == 1
        assert node.metric("commands_total", kind="forget", result="old_epoch") == 1


async def test_a_master_of_an_old_epoch_is_left_for_the_next_in_the_list(
    master: Any, start_master: StartMaster
) -> None:
    other = await start_master()
    async with run_node(master, other) as node:
        stream = await master.stream()
        await stream.welcome(epoch=9)
        stream.end()
        old = await master.stream()
        assert (await old.expect("hello")).epoch == 9
        old.say(8, welcome=Welcome(segment_ids=[7], heartbeat_ms=50))
        async with asyncio.timeout(20):
            await old.ended.wait()
        hello, *_ = await (await other.stream()).welcome(epoch=9)
        assert hello.epoch == 9
        assert node.metric("commands_total", kind="welcome", result="old_epoch") == 1


async def test_a_master_may_raise_its_epoch_on_the_stream(master: Any) -> None:
    async with run_node(master) as node:
        stream = await master.stream()
        await stream.welcome(epoch=1)
        stream.say(6, record=record(1, a_copy(0)))
        assert (await stream.expect("ack")).epoch == 6
        assert node.index.epoch == 6


@pytest.mark.parametrize(
    "bad",
    [
        record(1, a_copy(0, key=b"other")),  # overlaps
        record(1, a_copy(CAPACITY // 64)),  # out of bounds
        record(1, a_copy(1), segment_id=8),  # not this node's segment
        Record(command_id=1, copies=Copies(write_ids=[1])),  # columns that do not fit
    ],
)
async def test_a_claim_that_cannot_be_true_is_not_acknowledged(
    bad: Record, master: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_node(master) as node:
        stream = await master.stream()
        await stream.welcome()
        stream.say(1, record=record(0, a_copy(0)))
        stream.say(1, record=bad)
        stream.say(1, record=record(2, a_copy(2)))
        acks = [await stream.expect("ack")]
        while sum(len(ack.command_ids) for ack in acks) < 2:
            acks.append(await stream.expect("ack"))
        assert [number for ack in acks for number in ack.failed_command_ids] == [1]
        assert list(node.index.inventory(9)) == [[a_copy(0), a_copy(2)]]
        assert node.metric("commands_total", kind="record", result="rejected") == 1
        assert node.agent.attached.is_set()
    assert "record 1 was not done: " in caplog.text


async def test_a_refusal_is_logged_with_its_reason_and_tried_again(
    master: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_node(master) as node:
        stream = await master.stream()
        await stream.expect("hello")
        stream.say(1, refuse=Refuse(reason="node id n1 is taken"))
        await (await master.stream()).welcome()
        await node.until(node.agent.attached.is_set)
    assert "refused: node id n1 is taken" in caplog.text


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (MasterMessage(epoch=1, record=Record(command_id=1)), "record before a welcome"),
        (MasterMessage(epoch=1, welcome=Welcome(segment_ids=[7, 8], heartbeat_ms=5)), "this node announced 1"),
        (MasterMessage(epoch=1, welcome=Welcome(segment_ids=[7], heartbeat_ms=0)), "a heartbeat every 0 ms"),
    ],
)
async def test_a_welcome_that_cannot_be_meant_ends_the_attempt(
    message: MasterMessage, reason: str, master: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_node(master):
        stream = await master.stream()
        await stream.expect("hello")
        stream.to_send.put_nowait(message)
        await (await master.stream()).welcome()
    assert reason in caplog.text


async def test_a_master_that_does_not_answer_is_given_up(master: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with run_node(master, patience=Patience(answer_s=0.2, retry_s_min=0.01)):
        await (await master.stream()).expect("hello")
        await (await master.stream()).expect("hello")
    assert "it did not answer in 0.2 s" in caplog.text


async def test_a_master_that_does_not_read_is_given_up(master: Any, caplog: pytest.LogCaptureFixture) -> None:
    master.reads = False
    async with run_node(master, patience=Patience(answer_s=1.0, retry_s_min=0.01)) as node:
        node.index.record(1, [a_copy(number, key=bytes(1024)) for number in range(30_000)])  # an inventory of 30 MB
        stream = await master.stream()
        stream.say(1, welcome=Welcome(segment_ids=[7], heartbeat_ms=50))
        await master.stream()
    assert "it took no message for 1 s" in caplog.text


@asynccontextmanager
async def relay_to(address: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A relay's address, and the event without which it relays nothing and closes nothing."""
    host, port = address.split(":")
    flowing = asyncio.Event()
    flowing.set()
    pumps: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await flowing.wait()
            writer.write(data)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, onward_writer))
        pumps.append(asyncio.create_task(pump(reader, onward_writer)))
        pumps.append(asyncio.create_task(pump(onward_reader, writer)))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flowing
    server.close()
    for task in pumps:
        task.cancel()
    await asyncio.gather(*pumps, return_exceptions=True)
    for writer in writers:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def test_a_connection_that_falls_silent_is_found_out(master: Any) -> None:
    """As where a host or a network vanishes."""
    async with (
        relay_to(master.address) as (address, flowing),
        run_node(address, patience=Patience(answer_s=60.0)) as node,
    ):
        await (await master.stream()).welcome()
        await node.until(node.agent.attached.is_set)
        flowing.clear()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await node.until(lambda: not node.agent.attached.is_set())
        assert 1 < loop.time() - begun < 8


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
