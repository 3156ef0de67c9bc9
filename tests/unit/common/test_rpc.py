"""The gRPC server every service uses, called through real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from larder.channel import open_channel
from larder.v1 import master_pb2, master_pb2_grpc
from prometheus_client import CollectorRegistry

from services.common.rpc import CALLS_IN_FLIGHT_MAX, RpcServer


class Servicer(master_pb2_grpc.MasterServicer):
    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()

    async def Status(self, request: Any, context: Any) -> master_pb2.StatusReply:
        return master_pb2.StatusReply(version="9")

    async def Match(self, request: Any, context: Any) -> master_pb2.MatchReply:
        self.entered.set()
        await self.release.wait()
        return master_pb2.MatchReply(matched=1)

    async def Exists(self, request: Any, context: Any) -> master_pb2.ExistsReply:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a key is empty")
        raise AssertionError("unreachable")

    async def List(self, request: Any, context: Any) -> master_pb2.ListReply:
        raise KeyError("a bug")


class Running:
    def __init__(self, rpc: RpcServer, port: int, registry: CollectorRegistry, servicer: Servicer) -> None:
        self.rpc, self.port, self.registry, self.servicer = rpc, port, registry, servicer
        self.channel = open_channel(f"127.0.0.1:{port}")
        self.master = master_pb2_grpc.MasterStub(self.channel)

    async def counted(self, op: str, result: str) -> None:
        """Returns once the one such call is counted: a moment after its caller has the answer."""
        labels = {"op": op, "result": result}
        async with asyncio.timeout(10):
            while self.registry.get_sample_value("larder_test_rpc_seconds_count", labels) != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serve(in_flight_max: int = 8) -> AsyncIterator[Running]:
    registry = CollectorRegistry()
    rpc = RpcServer("127.0.0.1", 0, "test", registry, in_flight_max=in_flight_max)
    servicer = Servicer()
    master_pb2_grpc.add_MasterServicer_to_server(servicer, rpc.server)
    running = Running(rpc, await rpc.start(["larder.v1.Master"]), registry, servicer)
    try:
        yield running
    finally:
        await running.channel.close()
        await rpc.close(grace_s=0)


async def test_calls_are_answered_and_measured() -> None:
    async with serve() as server:
        assert (await server.master.Status(master_pb2.StatusRequest())).version == "9"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.master.Exists(master_pb2.ExistsRequest())
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details() == "a key is empty"
        await server.counted("Status", "OK")
        await server.counted("Exists", "INVALID_ARGUMENT")


async def test_an_unexpected_exception_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    async with serve() as server:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await server.master.List(master_pb2.ListRequest())
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert "a bug" not in (failed.value.details() or "")
        await server.counted("List", "INTERNAL")
        assert (await server.master.Status(master_pb2.StatusRequest())).version == "9"
    assert "List failed" in caplog.text
    assert "KeyError: 'a bug'" in caplog.text


async def test_calls_over_the_bound_are_refused() -> None:
    async with serve(in_flight_max=1) as server:
        waiting = asyncio.ensure_future(server.master.Match(master_pb2.MatchRequest()))
        await asyncio.wait_for(server.servicer.entered.wait(), 10)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.master.Status(master_pb2.StatusRequest())
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.value.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "100"
        server.servicer.release.set()
        assert (await waiting).matched == 1
        assert (await server.master.Status(master_pb2.StatusRequest())).version == "9"
        await server.counted("Status", "RESOURCE_EXHAUSTED")
        await server.counted("Status", "OK")
        await server.counted("Match", "OK")
        assert server.registry.get_sample_value("larder_test_rpc_in_flight") == 0


async def test_a_call_its_caller_gave_up_is_counted_as_cancelled() -> None:
    async with serve() as server:
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await server.master.Match(master_pb2.MatchRequest(), timeout=0.2)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await server.counted("Match", "CANCELLED")


async def test_reflection_and_health() -> None:
    async with serve() as server:
        stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        reply = await anext(aiter(call))
        names = {service.name for service in reply.list_services_response.service}
        assert names >= {"larder.v1.Master", "grpc.health.v1.Health"}
        health = health_pb2_grpc.HealthStub(server.channel)
        for name in ("", "larder.v1.Master"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 64, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff" * 9]
)
async def test_garbage_on_the_port_hurts_nobody(garbage: bytes) -> None:
    async with serve() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(garbage)
        await writer.drain()
        async with asyncio.timeout(10):
            await reader.read()  # the server ends the connection
        writer.close()
        assert (await server.master.Status(master_pb2.StatusRequest())).version == "9"


async def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: the port is taken"):
            await RpcServer("127.0.0.1", port, "test", CollectorRegistry()).start([])
    async with serve() as server:  # another server of this module does not share its port either
        with pytest.raises(OSError, match="the port is taken"):
            await RpcServer("127.0.0.1", server.port, "test", CollectorRegistry()).start([])


async def test_every_call_that_comes_at_once_is_answered_by_the_service_itself() -> None:
    """gRPC has limits of its own on calls that nobody has taken yet, far below ours, and cancels what is beyond."""
    async with serve(in_flight_max=CALLS_IN_FLIGHT_MAX) as server:
        calls = [server.master.Status(master_pb2.StatusRequest()) for _ in range(CALLS_IN_FLIGHT_MAX)]
        answers = await asyncio.gather(*calls)
        assert [answer.version for answer in answers] == ["9"] * CALLS_IN_FLIGHT_MAX
