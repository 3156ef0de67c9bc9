"""The gRPC face over a real socket: translation, statuses for bad input, the nodes' stream, metrics."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from larder.masters import SEVERAL
from larder.v1 import master_pb2 as pb
from larder.v1 import master_pb2_grpc, node_pb2, node_pb2_grpc, types_pb2
from larder.wire import pack_keys
from prometheus_client import CollectorRegistry, generate_latest

from services.common.rpc import RpcServer
from services.master import driver as driver_module
from services.master import wire
from services.master.core import messages as m
from services.master.core.master import Master
from services.master.core.tables import Config
from services.master.driver import Driver, monotonic_ms
from services.master.metrics import CoreCollector
from services.master.rpc import SERVICES, MasterService, NodeRegistry

ID = bytes(16)


class Node:
    """The node's end of the stream, acknowledging everything."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = node_pb2_grpc.NodeRegistryStub(channel).Attach()
        self.recorded: list[node_pb2.Copies] = []
        self.segments: list[int] = []
        self.task: asyncio.Task[None] | None = None

    async def attach(self) -> None:
        segment = types_pb2.Segment(capacity_bytes=1 << 20, shm_path="/pool", shm_token=b"t" * 16, engine_base=4096)
        hello = node_pb2.Hello(
            version="0.0.9", node_id="n0", incarnation=1, host_id="here", host_name="box", segments=[segment]
        )
        await self.call.write(node_pb2.NodeMessage(hello=hello))
        welcome = await self.call.read()
        self.segments = list(welcome.welcome.segment_ids)
        await self.call.write(node_pb2.NodeMessage(inventory_end=node_pb2.InventoryEnd()))
        self.task = asyncio.create_task(self.serve())

    async def serve(self) -> None:
        while (message := await self.call.read()) is not grpc.aio.EOF:
            kind = message.WhichOneof("message")
            command = getattr(message, kind)
            if kind == "record":
                self.recorded.append(command.copies)
            ack = node_pb2.Ack(epoch=message.epoch, command_ids=[command.command_id])
            await self.call.write(node_pb2.NodeMessage(ack=ack))

    async def close(self) -> None:
        self.call.cancel()
        if self.task is not None:
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await self.task


@pytest.fixture
async def driver() -> AsyncIterator[Driver]:
    driver = Driver(Master(Config(slice_bytes=4096), epoch=1, now=monotonic_ms()))
    yield driver
    driver.close()


@pytest.fixture
async def channel(driver: Driver) -> AsyncIterator[grpc.aio.Channel]:
    rpc = RpcServer("127.0.0.1", 0, "master", CollectorRegistry())
    master_pb2_grpc.add_MasterServicer_to_server(MasterService(driver), rpc.server)
    node_pb2_grpc.add_NodeRegistryServicer_to_server(NodeRegistry(driver), rpc.server)
    port = await rpc.start(SERVICES)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await rpc.close(0)


@pytest.fixture
async def node(channel: grpc.aio.Channel, driver: Driver) -> AsyncIterator[Node]:
    node = Node(channel)
    await node.attach()
    await until(lambda: any(segment.live for segment in driver.core.state.segments.values()))
    yield node
    await node.close()


async def until(condition: object) -> None:
    async with asyncio.timeout(5):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.005)


async def test_a_put_and_a_lookup_cross_the_wire(channel: grpc.aio.Channel, node: Node) -> None:
    stub = master_pb2_grpc.MasterStub(channel)
    started = await stub.PutStart(
        pb.PutStartRequest(request_id=ID, keys=pack_keys([b"k", b"long"]), sizes=[5000, 10], depths=[3, 4])
    )
    assert list(started.places.slice_lengths) == [4096, 904, 10]
    assert started.places.segments[0].shm_token == b"t" * 16
    assert started.places.segments[0].node_id == "n0"
    ended = await stub.PutEnd(
        pb.PutEndRequest(
            request_id=b"e" * 16, write_ids=started.write_ids, slice_counts=[2, 1], checksums=[7, 8, 2**64 - 1]
        )
    )
    assert list(ended.results) == [types_pb2.RESULT_OK] * 2
    assert list(node.recorded[0].depths) == [3, 3, 4]
    found = await stub.Lookup(pb.LookupRequest(keys=pack_keys([b"none", b"long"])))
    assert list(found.results) == [types_pb2.RESULT_MISS, types_pb2.RESULT_OK]
    assert list(found.places.checksums) == [2**64 - 1]
    assert found.lease_ms > 0
    assert (await stub.Match(pb.MatchRequest(keys=pack_keys([b"k", b"long", b"x"])))).matched == 2
    listed = await stub.List(pb.ListRequest())
    assert (listed.keys.data, list(listed.sizes)) == (b"klong", [5000, 10])
    told = await stub.Stat(pb.StatRequest(keys=pack_keys([b"none", b"k"]), lease=True))
    assert list(told.results) == [types_pb2.RESULT_MISS, types_pb2.RESULT_OK]
    assert (list(told.sizes), list(told.wanted), list(told.depths)) == ([0, 5000], [0, 1], [0, 3])
    assert (list(told.places.checksums), list(told.silent), told.lease_id > 0) == ([7, 8], [], True)
    await stub.Release(pb.ReleaseRequest(lease_ids=[told.lease_id]))
    removed = await stub.Remove(pb.RemoveRequest(request_id=b"r" * 16, keys=pack_keys([b"k"])))
    assert list(removed.results) == [types_pb2.RESULT_OK]
    status = await stub.Status(pb.StatusRequest())
    assert (status.objects, status.nodes[0].state, status.nodes[0].segments[0].copies) == (1, "attached", 1)
    assert (status.nodes[0].version, status.nodes[0].host_name) == ("0.0.9", "box")
    assert abs(status.wall_ms / 1000 - time.time()) < 60


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.PutStartRequest(request_id=ID, keys=types_pb2.Keys(data=b"abc", width=2), sizes=[1]), "no whole number"),
        (pb.PutStartRequest(request_id=ID, keys=types_pb2.Keys(data=b"abc", lengths=[1]), sizes=[1]), "add up to 1"),
        (pb.PutStartRequest(request_id=ID, keys=pack_keys([b"k" * 1025]), sizes=[1]), "1025 bytes: give 1 to 1024"),
        (pb.PutStartRequest(request_id=ID, keys=pack_keys([b"k"]), sizes=[0]), "0 bytes: give 1"),
        (pb.PutStartRequest(keys=pack_keys([b"k"]), sizes=[1]), "request_id has 0 bytes"),
    ],
)
async def test_bad_arguments_are_told_what_is_wrong(
    channel: grpc.aio.Channel, request_: pb.PutStartRequest, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await master_pb2_grpc.MasterStub(channel).PutStart(request_)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason in (raised.value.details() or "")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (types_pb2.Keys(data=b"abc", width=2), "no whole number"),
        (types_pb2.Keys(data=b"abc", width=3, lengths=[3]), "no whole number"),
        (types_pb2.Keys(data=b"abc", lengths=[1]), "add up to 1"),
        (types_pb2.Keys(data=b"k" * 2050, width=1025), "1025 bytes: give 1 to 1024"),
        (types_pb2.Keys(data=b"k" * 20_000, width=1), "the limit is 16384"),
    ],
)
async def test_match_is_told_what_is_wrong_with_its_keys(
    channel: grpc.aio.Channel, keys: types_pb2.Keys, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await master_pb2_grpc.MasterStub(channel).Match(pb.MatchRequest(keys=keys))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason in (raised.value.details() or "")


@pytest.mark.parametrize("width", [0, 1, 1025, 2**32 - 1])
async def test_match_of_no_keys_is_none_whatever_their_width(channel: grpc.aio.Channel, width: int) -> None:
    keys = types_pb2.Keys(width=width)
    assert (await master_pb2_grpc.MasterStub(channel).Match(pb.MatchRequest(keys=keys))).matched == 0


async def test_columns_of_failed_copies_must_agree(channel: grpc.aio.Channel) -> None:
    request = pb.PutEndRequest(request_id=ID, failed_writes=[0], failed_slices=[], failed_copies=[0])
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await master_pb2_grpc.MasterStub(channel).PutEnd(request)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_fault_of_a_later_version_is_refused(channel: grpc.aio.Channel) -> None:
    request = pb.ReportRequest(keys=pack_keys([b"k"]), slices=[0], segment_ids=[1], offsets=[0])
    request.faults.append(99)  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await master_pb2_grpc.MasterStub(channel).Report(request)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_a_node_says_of_its_pool_reaches_clients_whole() -> None:
    said = types_pb2.Segment(
        capacity_bytes=1 << 20, shm_path="/pool", shm_token=b"t" * 16, shm_data_offset=4096, engine_endpoint="a:1",
        engine_base=9, engine_protocol="rdma",
    )  # fmt: skip
    said.MergeFromString(b"\xf8\x07\x05")  # field 127, of a later version
    own = types_pb2.Segment(id=3, node_id="says", host_id="says", zone="says")
    own.MergeFrom(said)
    told = wire.segment_message(m.SegmentRef(7, "n0", "h0", "z0", wire.segment_info(own)))
    said.id, said.node_id, said.host_id, said.zone = 7, "n0", "h0", "z0"
    assert told.SerializeToString(deterministic=True) == said.SerializeToString(deterministic=True)


async def test_a_stream_that_talks_nonsense_is_ended_with_the_reason(channel: grpc.aio.Channel) -> None:
    call = node_pb2_grpc.NodeRegistryStub(channel).Attach()
    await call.write(node_pb2.NodeMessage())
    answer = await call.read()
    assert "unknown kind" in answer.refuse.reason
    assert await call.read() is grpc.aio.EOF


async def test_a_node_that_goes_is_noticed_at_once(channel: grpc.aio.Channel, node: Node, driver: Driver) -> None:
    node.call.cancel()
    await until(lambda: not any(segment.live for segment in driver.core.state.segments.values()))


async def test_a_callers_cancellation_leaves_nothing_behind(channel: grpc.aio.Channel, driver: Driver) -> None:
    """No node is attached: the put waits, the caller goes."""
    stub = master_pb2_grpc.MasterStub(channel)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.PutStart(
            pb.PutStartRequest(request_id=ID, keys=pack_keys([b"k"]), sizes=[1], wait_ms=200), timeout=0.05
        )
    await until(lambda: not driver._calls and not driver.core.puts.waiting)


def test_every_counter_is_exported(driver: Driver) -> None:
    registry = CollectorRegistry()
    registry.register(CoreCollector(driver.report))
    text = generate_latest(registry).decode()
    for name in ("larder_master_evicted_bytes_total", "larder_master_hit_keys_total", "larder_master_objects 0.0"):
        assert name in text


def test_the_cores_results_are_the_wires() -> None:
    assert {result.name: int(result) for result in m.Result} == {
        name.removeprefix("RESULT_"): number for name, number in types_pb2.Result.items() if number
    }
    assert {fault.name: int(fault) for fault in m.Fault} == {
        name.removeprefix("FAULT_"): number for name, number in pb.Fault.items() if number
    }


async def test_a_client_with_too_many_writes_is_told_when_to_ask_again(
    channel: grpc.aio.Channel, driver: Driver, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver.core.writes.grants, "config", Config(writes_per_client_max=1))
    stub = master_pb2_grpc.MasterStub(channel)
    for number, client_id in enumerate([b"one", b"other", b""]):
        request = pb.PutStartRequest(
            request_id=bytes([number]) * 16, keys=pack_keys([b"k"]), sizes=[1], client_id=client_id
        )
        assert len((await stub.PutStart(request)).write_ids) == 1
        request.request_id = bytes([64 + number]) * 16
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.PutStart(request)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(raised.value.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "100"


async def test_a_node_that_does_not_take_its_commands_is_cut_off(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "STREAM_QUEUE_MAX", 2)
    stream, queue = driver.open_stream()
    driver.step(m.Hello(stream, "n0", 1, 0, "h0", [m.SegmentInfo(1 << 20)]))
    driver.step(m.InventoryEnd(stream))
    for _ in range(3):
        driver.step(m.Drain(0, "n0", cancel=False))
        driver.step(m.Drain(0, "n0", cancel=True))
    assert queue.qsize() == 2
    assert isinstance([queue.get_nowait() for _ in range(2)][-1], m.Close)


async def test_a_core_that_contradicts_itself_ends_the_master(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Crash, and let the next master learn from the nodes, rather than go on with tables that are wrong."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    failing = asyncio.create_task(driver.failure())
    await asyncio.sleep(0)
    monkeypatch.setattr(driver.core, "step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        driver.step(m.Tick())
    with pytest.raises(ZeroDivisionError):
        await failing


async def test_a_master_without_nodes_sends_on_whoever_knows_others(
    channel: grpc.aio.Channel, node: Node, driver: Driver
) -> None:
    stub, others = master_pb2_grpc.MasterStub(channel), ((SEVERAL, "2"),)
    exists = pb.ExistsRequest(keys=pack_keys([b"k"]))
    assert list((await stub.Exists(exists, metadata=others)).exists) == [False]
    assert (await stub.Status(pb.StatusRequest(brief=True))).attached == 1
    await node.close()
    await until(lambda: not driver.core.state.attached())
    for method, request in (
        (stub.Exists, exists),
        (stub.Status, pb.StatusRequest()),
        (stub.PutStart, pb.PutStartRequest(request_id=ID, keys=pack_keys([b"k"]), sizes=[1], wait_ms=60_000)),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="no storage node is attached to this master") as refused:
            await method(request, metadata=others, timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert list((await stub.Exists(exists)).exists) == [False], "who knows no other gets what there is"
    brief = await stub.Status(pb.StatusRequest(brief=True))
    assert (brief.attached, list(brief.nodes)) == (0, [])
