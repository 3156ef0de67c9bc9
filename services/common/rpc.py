"""A gRPC server as every service runs it: bounded, measured, reflected, with grpc.health.v1. No servicer lives here.

An unexpected exception in a servicer is logged and answered INTERNAL; beyond the bound on calls in flight the answer is
RESOURCE_EXHAUSTED (invariant 12). Streams are not counted: they live as long as their peer.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NoReturn
from urllib.parse import unquote

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from larder.addresses import ip_of, join, split
from prometheus_client import CollectorRegistry, Gauge, Histogram

logger = logging.getLogger(__name__)

MESSAGE_BYTES_MAX: Final = 64 * 2**20
CALLS_IN_FLIGHT_MAX: Final = 4096  # more than may wait in a service, so that the others are still answered
RETRY_MS: Final = 100  # what a caller beyond the bound is told
_BUCKETS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
PENDING_MAX: Final = 4 * CALLS_IN_FLIGHT_MAX
"""Calls that have arrived and are not counted yet: beyond this gRPC itself refuses, without saying when to retry."""
_OPTIONS: Final = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.server.max_pending_requests", PENDING_MAX),  # gRPC's own limits, 1,000 and 3,000, are lower
    ("grpc.server.max_pending_requests_hard_limit", PENDING_MAX),
    ("grpc.so_reuseport", 0),  # or a second server could start on a taken port, and calls would go to either
    ("grpc.keepalive_time_ms", 10_000),  # a peer whose host vanished is noticed
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),  # peers ping every second: see larder.channel
]


async def overloaded(context: Any, reason: str, retry_ms: int) -> NoReturn:
    """Refuses a call and says when to try again."""
    context.set_trailing_metadata((("grpc-retry-pushback-ms", str(retry_ms)),))
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{reason}; ask again in {retry_ms} ms")
    raise AssertionError("abort does not return")


def peer_host(peer: str) -> str:
    """The IP address of a gRPC peer, such as ipv4:10.0.0.1:4711 or ipv6:%5B::1%5D:4711; empty if it has none."""
    try:
        host, _ = split(unquote(peer.partition(":")[2]))
    except ValueError:
        return ""
    return str(ip_of(host) or "")


class RpcServer:
    """Add servicers to `.server`, then call start() with their full names."""

    def __init__(
        self,
        host: str,
        port: int,
        service: str,
        registry: CollectorRegistry,
        *,
        in_flight_max: int = CALLS_IN_FLIGHT_MAX,
    ) -> None:
        self._host, self._port = host, port
        self._health = health.aio.HealthServicer()
        measure = _Measure(service, registry, in_flight_max)
        self.server: grpc.aio.Server = grpc.aio.server(interceptors=[measure], options=_OPTIONS)
        self.answered: Mapping[str, int] = measure.answered
        """Calls answered so far, by method, whatever the answer was."""

    async def start(self, services: Sequence[str]) -> int:
        """Returns the port it listens on; raises OSError when it cannot."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], self.server)
        try:
            port = self.server.add_insecure_port(join(self._host, self._port))
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {join(self._host, self._port)}: the port is taken or the host is not one of this "
                "machine's; choose another --port (0 takes a free one)"
            ) from error
        await self.server.start()
        for name in ("", *services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return port

    async def close(self, grace_s: float) -> None:
        """Accepts no more calls, waits up to grace_s for those in flight, then cancels them."""
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)


class _Measure(grpc.aio.ServerInterceptor):
    def __init__(self, service: str, registry: CollectorRegistry, in_flight_max: int) -> None:
        self._seconds = Histogram(
            f"larder_{service}_rpc_seconds",
            "Time to answer a call",
            ("op", "result"),
            buckets=_BUCKETS,
            registry=registry,
        )
        self.answered: Counter[str] = Counter()
        self._gauge = Gauge(f"larder_{service}_rpc_in_flight", "Calls being answered", registry=registry)
        self._in_flight = 0
        self._in_flight_max = in_flight_max
        self._gauge.set_function(lambda: self._in_flight)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        op = details.method.rpartition("/")[2]
        if handler is None or handler.response_streaming or handler.request_streaming:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            self._measured(op, handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _measured(self, op: str, behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: Any) -> Any:
            start = time.monotonic()
            result = "OK"
            self._in_flight += 1
            try:
                if self._in_flight > self._in_flight_max:
                    result = "RESOURCE_EXHAUSTED"
                    await overloaded(context, f"{self._in_flight_max} calls in flight already", RETRY_MS)
                return await behaviour(request, context)
            except grpc.aio.AbortError:
                result = _code_name(context)
                raise
            except asyncio.CancelledError:
                result = "CANCELLED"
                raise
            except Exception:
                logger.exception("%s failed", op)
                result = "INTERNAL"
                await context.abort(grpc.StatusCode.INTERNAL, f"{op} failed; the reason is in the server's log")
            finally:
                self._in_flight -= 1
                self.answered[op] += 1
                self._seconds.labels(op, result).observe(time.monotonic() - start)

        return call


def _code_name(context: Any) -> str:
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else str(code)
