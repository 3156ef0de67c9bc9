"""A master for the node's tests: a real gRPC server whose every word the test says itself."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from larder.v1.node_pb2 import Farewell, MasterMessage, NodeMessage, Welcome
from larder.v1.node_pb2_grpc import NodeRegistryServicer, add_NodeRegistryServicer_to_server
from prometheus_client import CollectorRegistry

from services.common.rpc import RpcServer

DEADLINE_S = 20


class Stream:
    """One attachment, from the master's side."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[NodeMessage] = asyncio.Queue()
        self.to_send: asyncio.Queue[MasterMessage | None] = asyncio.Queue()
        self.heartbeats = 0
        self.ended = asyncio.Event()

    async def expect(self, kind: str) -> Any:
        """The next message, which must be a `kind`; heartbeats are counted and skipped."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                message = await self.received.get()
                found = message.WhichOneof("message")
                if found == "heartbeat" and kind != "heartbeat":
                    self.heartbeats += 1
                    continue
                assert found == kind, f"{found} where {kind} was due"
                return getattr(message, kind)

    def say(self, epoch: int, **message: Any) -> None:
        self.to_send.put_nowait(MasterMessage(epoch=epoch, **message))

    def end(self) -> None:
        self.to_send.put_nowait(None)

    async def welcome(self, epoch: int = 1, *, segment_id: int = 7, heartbeat_ms: int = 50) -> list[Any]:
        """Takes the hello and the inventory; returns the hello and then the inventory's chunks."""
        heard = [await self.expect("hello")]
        self.say(epoch, welcome=Welcome(segment_ids=[segment_id], heartbeat_ms=heartbeat_ms))
        while True:
            async with asyncio.timeout(DEADLINE_S):
                message = await self.received.get()
            if message.WhichOneof("message") == "inventory_end":
                return heard
            heard.append(message.inventory)

    async def farewell(self, epoch: int = 1) -> None:
        await self.expect("leave")
        self.say(epoch, farewell=Farewell())


class Master(NodeRegistryServicer):
    """Hands each attachment to the test."""

    def __init__(self) -> None:
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.reads = True
        self.address = ""
        self.rpc: RpcServer | None = None

    async def start(self, port: int = 0) -> None:
        self.rpc = RpcServer("127.0.0.1", port, "test", CollectorRegistry())
        add_NodeRegistryServicer_to_server(self, self.rpc.server)
        self.address = f"127.0.0.1:{await self.rpc.start([])}"

    async def stop(self) -> None:
        if self.rpc is not None:
            await self.rpc.close(grace_s=0)
            self.rpc = None

    async def stream(self) -> Stream:
        async with asyncio.timeout(DEADLINE_S):
            return await self.streams.get()

    async def Attach(self, requests: AsyncIterator[NodeMessage], context: Any) -> AsyncIterator[MasterMessage]:
        stream = Stream()

        async def read() -> None:
            async for message in requests:
                stream.received.put_nowait(message)

        self.streams.put_nowait(stream)
        reader = asyncio.create_task(read()) if self.reads else None
        try:
            while (message := await stream.to_send.get()) is not None:
                yield message
        finally:
            stream.ended.set()
            if reader is not None:
                reader.cancel()


@pytest.fixture
async def start_master() -> AsyncIterator[Callable[..., Awaitable[Master]]]:
    masters: list[Master] = []

    async def start(port: int = 0) -> Master:
        master = Master()
        masters.append(master)
        await master.start(port)
        return master

    yield start
    for master in masters:
        await master.stop()


@pytest.fixture
async def master(start_master: Callable[..., Awaitable[Master]]) -> Master:
    return await start_master()


@pytest.fixture
def shm() -> Iterator[Path]:
    """A folder on tmpfs."""
    folder = Path(tempfile.mkdtemp(prefix="larder-test-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)
