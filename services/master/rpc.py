"""The gRPC face: requests to commands, answers to replies, refusals to statuses. Decides nothing."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import grpc
from larder.masters import SEVERAL
from larder.v1 import master_pb2 as pb
from larder.v1 import master_pb2_grpc, node_pb2, node_pb2_grpc
from larder.wire import pack_keys, unpack_keys

from services.common.rpc import overloaded, peer_host
from services.common.version import VERSION
from services.master import wire
from services.master.core import messages as m
from services.master.driver import Driver, Told
from services.master.reach import check_address

logger = logging.getLogger(__name__)

NO_NODES = "no storage node is attached to this master"
SERVICES = ("larder.v1.Master", "larder.v1.NodeRegistry")
Context = grpc.aio.ServicerContext[Any, Any]


class MasterService(master_pb2_grpc.MasterServicer):
    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    async def PutStart(self, request: pb.PutStartRequest, context: Context) -> pb.PutStartReply:
        answer: m.PutStarted = await self._ask(lambda call: wire.put_start(call, request, context.peer()), context)
        return pb.PutStartReply(
            results=wire.results(answer.results),
            write_ids=answer.write_ids,
            places=wire.places_message(answer.places),
            write_ttl_ms=answer.write_ttl_ms,
            shortage=answer.shortage,
            remedy=answer.remedy,
        )

    async def PutEnd(self, request: pb.PutEndRequest, context: Context) -> pb.PutEndReply:
        answer: m.PutEnded = await self._ask(lambda call: wire.put_end(call, request), context)
        return pb.PutEndReply(results=wire.results(answer.results), copies=answer.copies)

    async def PutAbort(self, request: pb.PutAbortRequest, context: Context) -> pb.PutAbortReply:
        answer: m.PutAborted = await self._ask(
            lambda call: m.PutAbort(call, request.request_id, list(request.write_ids)), context
        )
        return pb.PutAbortReply(results=wire.results(answer.results))

    async def Lookup(self, request: pb.LookupRequest, context: Context) -> pb.LookupReply:
        answer: m.Found = await self._ask(
            lambda call: m.Lookup(call, unpack_keys(request.keys), request.host_id, request.zone), context
        )
        return pb.LookupReply(
            results=wire.results(answer.results),
            sizes=answer.sizes,
            places=wire.places_message(answer.places),
            lease_ms=answer.lease_ms,
            lease_id=answer.lease,
        )

    async def Release(self, request: pb.ReleaseRequest, context: Context) -> pb.ReleaseReply:
        await self._ask(lambda call: m.Release(call, list(request.lease_ids)), context)
        return pb.ReleaseReply()

    async def Match(self, request: pb.MatchRequest, context: Context) -> pb.MatchReply:
        answer: m.Matched = await self._ask(lambda call: wire.match(call, request), context)
        return pb.MatchReply(matched=answer.matched)

    async def Exists(self, request: pb.ExistsRequest, context: Context) -> pb.ExistsReply:
        answer: m.Existing = await self._ask(lambda call: m.Exists(call, unpack_keys(request.keys)), context)
        return pb.ExistsReply(exists=map(bool, answer.sizes), sizes=answer.sizes if request.sizes else ())

    async def Remove(self, request: pb.RemoveRequest, context: Context) -> pb.RemoveReply:
        answer: m.Removed = await self._ask(
            lambda call: m.Remove(call, request.request_id, unpack_keys(request.keys)), context
        )
        return pb.RemoveReply(results=wire.results(answer.results))

    async def Report(self, request: pb.ReportRequest, context: Context) -> pb.ReportReply:
        answer: m.Reported = await self._ask(lambda call: wire.report(call, request), context)
        return pb.ReportReply(dropped=answer.dropped)

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListReply:
        answer: m.Listed = await self._ask(
            lambda call: m.List(call, request.prefix, request.after, request.limit), context
        )
        return pb.ListReply(keys=pack_keys(answer.keys), sizes=answer.sizes, copies=answer.copies, more=answer.more)

    async def Stat(self, request: pb.StatRequest, context: Context) -> pb.StatReply:
        answer: m.Known = await self._ask(lambda call: m.Stat(call, unpack_keys(request.keys), request.lease), context)
        return wire.stat_message(answer)

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusReply:
        answer: m.StatusReport = await self._ask(lambda call: m.Status(call, request.brief), context)
        return wire.status_message(answer, VERSION, self._driver.told, int(time.time() * 1000))

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainReply:
        await self._ask(lambda call: m.Drain(call, request.node_id, request.cancel), context)
        return pb.DrainReply()

    async def _ask(self, command: Callable[[int], m.ClientCommand], context: Context) -> Any:
        if not self._driver.has_nodes and _knows_others(context):
            await _abort(context, grpc.StatusCode.UNAVAILABLE, NO_NODES)
        try:
            answer = await self._driver.call(command)
        except ValueError as error:  # contradictory columns: the core never saw them
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if isinstance(answer, m.Rejected):
            if answer.overloaded:
                await overloaded(context, answer.reason, answer.retry_ms)
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, answer.reason)
        return answer


class NodeRegistry(node_pb2_grpc.NodeRegistryServicer):
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._checks: set[asyncio.Task[None]] = set()  # whether nodes are where they say

    async def Attach(
        self, requests: AsyncIterator[node_pb2.NodeMessage], context: Context
    ) -> AsyncIterator[node_pb2.MasterMessage]:
        """One node's stream, until either side ends it."""
        stream, queue = self._driver.open_stream()
        names: list[str] = []  # of the node, once it has said hello
        peer, why = context.peer(), "the connection broke"
        reader = asyncio.create_task(self._read(stream, requests, peer_host(peer), names))
        try:
            while True:
                effect = await queue.get()
                yield wire.to_node(effect, self._driver.now_ms())
                if isinstance(effect, m.Close | m.Farewell):
                    why = getattr(effect, "reason", "it left")
                    return
        finally:
            who = names[-1] if names else "(not named yet)"
            logger.info("the stream of node %s (%s) ends: %s", who, peer, why)
            reader.cancel()
            self._driver.close_stream(stream)

    async def _read(
        self, stream: int, requests: AsyncIterator[node_pb2.NodeMessage], host: str, names: list[str]
    ) -> None:
        reason = "the node ended its stream"
        try:
            async for message in requests:
                command = wire.node_command(stream, message, self._driver.now_ms(), host)
                if isinstance(command, m.Hello):
                    names.append(command.node_id)
                    said = message.hello
                    self._driver.tell(command.node_id, Told(said.version, said.host_name, said.address))
                    logger.info("node %s (incarnation %d) attaches", command.node_id, command.incarnation)
                    check = asyncio.create_task(check_address(said, host))
                    self._checks.add(check)
                    check.add_done_callback(self._checks.discard)
                self._driver.step(command)
        except ValueError as error:
            reason = f"bad message: {error}"
        except grpc.aio.UsageError:
            pass  # the call is over: the writer cleans up
        self._driver.refuse(stream, reason)


def _knows_others(context: Context) -> bool:
    """Whether the caller names several masters, so that another one may be in charge."""
    return any(name == SEVERAL for name, _ in context.invocation_metadata() or ())


async def _abort(context: Context, code: grpc.StatusCode, reason: str) -> NoReturn:
    await context.abort(code, reason)
    raise AssertionError("abort does not return")
