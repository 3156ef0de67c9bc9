"""An agent that runs against masters the test plays, and what those say to it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock

from larder.pool_file import PoolHeader
from larder.v1.node_pb2 import Forget, Record
from prometheus_client import CollectorRegistry

from services.common.held import HeldCopy
from services.storage_node.agent import Agent
from services.storage_node.attachment import Patience
from services.storage_node.core.index import Index, Place
from services.storage_node.metrics import Metrics
from services.storage_node.wire import Numbers, Reachable, copies_to_wire, hello_to_wire

CAPACITY = 1 << 24
QUICK = Patience(answer_s=2.0, farewell_s=2.0, retry_s_min=0.01, retry_s_max=0.05, writers_s=0.01)


def a_copy(number: int, *, key: bytes = b"key") -> HeldCopy:
    return HeldCopy(key, number + 1, 64, 1, 0, 0, number * 64, 64, 99, 0)


def record(command_id: int, *copies: HeldCopy, segment_id: int = 7) -> Record:
    return Record(command_id=command_id, copies=copies_to_wire(copies, Numbers((segment_id,)), 0))


def forget(command_id: int, *copies: HeldCopy, segment_id: int = 7, watched: bool = False) -> Forget:
    return Forget(
        command_id=command_id,
        segment_ids=[segment_id] * len(copies),
        offsets=[copy.offset for copy in copies],
        write_ids=[copy.write_id for copy in copies],
        lengths=[copy.length for copy in copies] if watched else [],
    )


class Node:
    """An agent that runs, with what it works on."""

    def __init__(self, masters: list[str], patience: Patience) -> None:
        self.registry = CollectorRegistry()
        self.index = Index([CAPACITY])
        self.metrics = Metrics(self.index, ("dram",))
        self.metrics.show(self.registry, "n1")
        hello = hello_to_wire(
            "n1", "/pools/n1", PoolHeader(CAPACITY, b"t" * 16, 42), Reachable("127.0.0.1:9", 4096, "tcp")
        )
        self.writers: set[int] = set()  # offsets of places where a client writes
        self.looks = 0

        def has_writer(place: Place) -> bool:
            self.looks += 1
            return place.offset in self.writers

        self.agent = Agent(masters, hello, self.index, self.metrics, AsyncMock(), has_writer, patience)
        self.stop = asyncio.Event()

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"larder_node_{name}", labels | {"node": "n1"}) or 0.0

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110  (whatever the condition is about)
                await asyncio.sleep(0.005)


@asynccontextmanager
async def run_node(*masters: Any, patience: Patience = QUICK) -> AsyncIterator[Node]:
    """Stops at the end without a leave, as where the process dies."""
    node = Node([master if isinstance(master, str) else master.address for master in masters], patience)
    running = asyncio.create_task(node.agent.run(node.stop))
    try:
        yield node
        assert not running.done() or running.exception() is None
    finally:
        running.cancel()
        await asyncio.wait([running])
