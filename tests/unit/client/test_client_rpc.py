"""Calls to a master that misbehaves: what is sent again, and which error comes out, against a real gRPC server."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from larder.arguments import Terms
from larder.errors import InvalidArgument, LarderError, NoSpace, StoreClosed, Unavailable
from larder.places import Fault
from larder.rpc import BadCopy, MasterClient
from larder.stats import Stats
from larder.v1 import master_pb2 as pb
from larder.v1 import master_pb2_grpc
from larder.v1.types_pb2 import Places, Result

Code = grpc.StatusCode
NOTHING = Places(slice_counts=[0])
ONE_SLICE_OF_4 = Places(slice_counts=[1], slice_lengths=[4], checksums=[0], copy_counts=[0])


class Master(master_pb2_grpc.MasterServicer):
    """Answers each call with the next of its script: a status code, a reply, or None for never."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.requests: list[Any] = []
        self.pushback = ""
        self.metadata: dict[str, Any] = {}

    async def _answer(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if answer is None:
            await asyncio.sleep(60)
        if isinstance(answer, grpc.StatusCode):
            if self.pushback:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", self.pushback),))
            await context.abort(answer, "scripted")
        return answer

    PutStart = PutEnd = PutAbort = Lookup = Match = Exists = Remove = Report = List = Status = _answer


@pytest.fixture
async def master() -> AsyncIterator[Master]:
    master, server = Master(), grpc.aio.server()
    master_pb2_grpc.add_MasterServicer_to_server(master, server)
    master.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield master
    await server.stop(None)


@pytest.fixture
async def client(master: Any) -> AsyncIterator[MasterClient]:
    client = MasterClient([master.address], Stats())
    yield client
    await client.close()


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.CANCELLED])
async def test_a_passing_failure_is_sent_again_with_the_same_request_id(
    master: Master, client: MasterClient, code: grpc.StatusCode
) -> None:
    master.script = [code, code, pb.RemoveReply(results=[Result.RESULT_OK])]
    assert await client.remove([b"key"], deadline=soon()) == [True]
    assert len(master.requests) == 3
    assert len({request.request_id for request in master.requests}) == 1
    assert len(master.requests[0].request_id) == 16
    assert client._stats.as_dict() == {"rpc_retries": 2}
    await client.remove([b"key"], deadline=soon())
    assert len({request.request_id for request in master.requests}) == 2


@pytest.mark.parametrize(
    ("code", "kind", "calls"),
    [
        (Code.UNAVAILABLE, Unavailable, "many"),
        (Code.RESOURCE_EXHAUSTED, Unavailable, "many"),
        (Code.CANCELLED, Unavailable, "many"),
        (Code.INVALID_ARGUMENT, InvalidArgument, "one"),
        (Code.INTERNAL, Unavailable, "one"),
        (Code.UNIMPLEMENTED, Unavailable, "one"),
        (Code.DEADLINE_EXCEEDED, Unavailable, "one"),
    ],
)
async def test_what_a_status_means(
    master: Master, client: MasterClient, code: grpc.StatusCode, kind: type[LarderError], calls: str
) -> None:
    master.script = [code]
    begun = time.monotonic()
    with pytest.raises(kind, match=r"scripted|in time"):
        await client.match([b"key"], wait_s=0, deadline=soon(0.5))
    assert (len(master.requests) > 1) == (calls == "many")
    assert time.monotonic() - begun < 1.0


@pytest.mark.parametrize(("hint", "least_s", "most_s"), [("300", 0.3, 0.75), ("-1", 0.0, 0.2), ("soon", 0.0, 0.2)])
async def test_a_master_that_has_too_much_to_do_says_when_to_ask_again(
    master: Master, client: MasterClient, hint: str, least_s: float, most_s: float
) -> None:
    master.pushback = hint
    master.script = [Code.RESOURCE_EXHAUSTED, pb.MatchReply(matched=1)]
    begun = time.monotonic()
    assert await client.match([b"key"], wait_s=0, deadline=soon()) == 1
    assert least_s <= time.monotonic() - begun <= most_s


async def test_a_wait_that_is_asked_for_does_not_outlast_the_deadline(master: Master, client: MasterClient) -> None:
    master.pushback = "60000"
    master.script = [Code.RESOURCE_EXHAUSTED]
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="is overloaded"):
        await client.match([b"key"], wait_s=0, deadline=soon(0.4))
    assert time.monotonic() - begun < 1.0


async def test_an_overloaded_master_takes_no_puts(master: Master, client: MasterClient) -> None:
    master.script = [Code.RESOURCE_EXHAUSTED]
    with pytest.raises(NoSpace, match="no more puts"):
        await client.put_start([b"key"], [1], Terms(), depths=[], deadline=soon(0.3))


async def test_a_silent_master_is_unavailable_in_time(master: Master, client: MasterClient) -> None:
    master.script = [None]
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="did not answer Exists in time"):
        await client.exists([b"key"], deadline=soon(0.4))
    assert time.monotonic() - begun < 1.5


async def test_a_deadline_is_kept_where_grpc_keeps_none(client: MasterClient) -> None:
    class Hanging:
        async def Exists(self, request: Any, **_: Any) -> None:
            await asyncio.Event().wait()

    client._stubs = [Hanging()]
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="did not answer Exists in time"):
        await client.exists([b"key"], deadline=soon(0.2))
    assert time.monotonic() - begun < 2.0


async def test_the_other_address_is_tried(master: Any) -> None:
    client = MasterClient(["127.0.0.1:1", master.address], Stats())
    master.script = [pb.MatchReply(matched=3)]
    assert await client.match([b"key"], wait_s=0, deadline=soon()) == 3
    assert await client.match([b"key"], wait_s=0, deadline=soon()) == 3  # and kept
    assert client._stats.as_dict() == {"rpc_retries": 1}
    await client.close()


async def test_where_none_serves_each_is_named_with_its_reason(master: Any) -> None:
    client = MasterClient(["127.0.0.1:1", master.address], Stats())
    master.script = [Code.UNAVAILABLE]
    with pytest.raises(Unavailable, match=rf"127.0.0.1:1: .*refused.*; {master.address}: scripted") as caught:
        await client.match([b"key"], wait_s=0, deadline=soon(0.5))
    assert "storage nodes are attached" in str(caught.value)
    await client.close()


@pytest.mark.parametrize("several", [True, False])
async def test_a_master_is_told_whether_others_are_known(master: Any, several: bool) -> None:
    client = MasterClient([master.address] * (1 + several), Stats())
    master.script = [pb.MatchReply(matched=3)]
    await client.match([b"key"], wait_s=0, deadline=soon())
    assert master.metadata.get("larder-masters") == ("2" if several else None)
    await client.close()


async def test_a_closed_client_says_so(master: Master, client: MasterClient) -> None:
    await client.close()
    with pytest.raises(StoreClosed):
        await client.match([b"key"], wait_s=0, deadline=soon())


async def test_a_client_that_is_closed_meanwhile_says_so(master: Master, client: MasterClient) -> None:
    master.script = [None]
    call = asyncio.create_task(client.match([b"key"], wait_s=0, deadline=soon()))
    while not master.requests:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(StoreClosed):
        await call


async def test_a_call_that_is_cancelled_is_cancelled(master: Master, client: MasterClient) -> None:
    master.script = [None]
    call = asyncio.create_task(client.match([b"key"], wait_s=0, deadline=soon()))
    while not master.requests:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_times_count_from_before_the_request(master: Master, client: MasterClient) -> None:
    before = time.monotonic()
    master.script = [pb.LookupReply(results=[Result.RESULT_MISS], sizes=[0], places=NOTHING, lease_ms=4000)]
    found = await client.lookup([b"key"], deadline=soon())
    assert before + 4 <= found.until <= time.monotonic() + 4
    master.script = [pb.PutStartReply(results=[Result.RESULT_EXISTS], write_ids=[0], places=NOTHING, write_ttl_ms=9000)]
    before = time.monotonic()
    started = await client.put_start([b"key"], [1], Terms(), depths=[], deadline=soon(4))
    assert before + 9 <= started.until <= time.monotonic() + 9
    assert 2500 <= master.requests[-1].wait_ms <= 3000  # the rest of the time is for the bytes


@pytest.mark.parametrize(
    "reply",
    [
        pb.LookupReply(results=[Result.RESULT_OK], sizes=[5], places=ONE_SLICE_OF_4),
        pb.LookupReply(results=[Result.RESULT_OK], sizes=[0], places=NOTHING),
        pb.LookupReply(results=[Result.RESULT_MISS], sizes=[5], places=NOTHING),
    ],
)
async def test_an_answer_that_contradicts_itself_is_an_error(master: Master, client: MasterClient, reply: Any) -> None:
    master.script = [reply]
    with pytest.raises(LarderError, match="contradicts itself"):
        await client.lookup([b"key"], deadline=soon())


async def test_a_put_waits_for_copies_made_elsewhere_within_its_deadline(master: Master, client: MasterClient) -> None:
    master.script = [pb.PutEndReply()]
    for seconds in (60.0, 1.0):
        await client.put_end([], [], [], deadline=soon(seconds))
    long, short = (request.wait_ms for request in master.requests)
    assert (long, 500 < short <= 750) == (2000, True)


async def test_columns_of_put_end_and_report(master: Master, client: MasterClient) -> None:
    master.script = [pb.PutEndReply(results=[Result.RESULT_OK] * 2, copies=[1, 2]), pb.ReportReply(dropped=1)]
    ended = await client.put_end([7, 8], [[1, 2], [3]], [(0, 1, 1), (1, 0, 0)], deadline=soon())
    assert list(ended.copies) == [1, 2]
    sent = master.requests[0]
    assert (list(sent.write_ids), list(sent.slice_counts), list(sent.checksums)) == ([7, 8], [2, 1], [1, 2, 3])
    assert list(zip(sent.failed_writes, sent.failed_slices, sent.failed_copies, strict=True)) == [(0, 1, 1), (1, 0, 0)]
    bad = [BadCopy(b"k", 2, 3, 4, Fault.CORRUPT), BadCopy(b"key", 5, 6, 7, Fault.STALLED)]
    assert await client.report(bad, deadline=soon()) == 1
    sent = master.requests[1]
    assert list(sent.faults) == [pb.FAULT_CORRUPT, pb.FAULT_UNREACHABLE]
    assert (list(sent.slices), list(sent.segment_ids), list(sent.offsets)) == ([2, 5], [3, 6], [4, 7])
