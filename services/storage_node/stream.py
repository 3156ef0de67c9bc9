"""One gRPC stream to a master, reduced to send and receive. Whatever ends it becomes a StreamError that says why."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
from larder.channel import open_channel
from larder.errors import LarderError
from larder.v1.node_pb2 import MasterMessage, NodeMessage
from larder.v1.node_pb2_grpc import NodeRegistryStub

T = TypeVar("T")


class StreamError(LarderError):
    """This attachment is over; another attempt may do better."""


class IdTaken(StreamError):
    """Another process has this node's id, and is alive."""


class MasterStream:
    """send() may be called from several tasks, receive() from one. Each send has a deadline, as a master must read."""

    def __init__(self, call: Any, send_timeout_s: float) -> None:
        self._call = call
        self._send_timeout_s = send_timeout_s
        self._sending = asyncio.Lock()

    async def send(self, message: NodeMessage) -> None:
        try:
            async with asyncio.timeout(self._send_timeout_s), self._sending:
                await _ended_as_error(self._call.write(message))
        except TimeoutError:
            raise StreamError(f"it took no message for {self._send_timeout_s:g} s") from None

    async def receive(self) -> MasterMessage:
        message = await _ended_as_error(self._call.read())
        if message is grpc.aio.EOF:
            raise StreamError("it ended the stream")
        return message  # type: ignore[no-any-return]


@asynccontextmanager
async def open_stream(address: str, send_timeout_s: float) -> AsyncIterator[MasterStream]:
    """A stream to the master at HOST:PORT, which may not be there: it has to answer first."""
    async with open_channel(address) as channel:
        call = NodeRegistryStub(channel).Attach()
        try:
            yield MasterStream(call, send_timeout_s)
        finally:
            call.cancel()


async def _ended_as_error(operation: Awaitable[T]) -> T:
    try:
        return await operation
    except grpc.aio.AioRpcError as error:
        raise StreamError(f"{error.code().name}: {error.details()}") from error
    except asyncio.InvalidStateError as error:  # gRPC's answer to a write after the end
        raise StreamError("the stream has ended") from error
    except asyncio.CancelledError as error:  # also gRPC's way to say that another task's time-out ended the stream
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise StreamError("the stream was cancelled") from error
