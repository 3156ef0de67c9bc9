"""Larder's own code as processes of the simulation: master, storage nodes, clients, and what stands around them.

Nothing of the product is replaced but clocks, randomness, the network and the memory: `installed` puts those under the
names by which the product's modules know them.
"""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from larder.aio import Store
from larder.options import Options
from larder.rpc import MasterClient
from larder.v1.node_pb2 import Hello
from larder.v1.types_pb2 import Segment

from services.master.core.master import Master
from services.master.core.tables import Config
from services.master.driver import Driver
from services.master.rpc import MasterService, NodeRegistry
from services.storage_node.agent import Agent
from services.storage_node.attachment import Patience
from services.storage_node.core.index import Index
from services.storage_node.fetcher import Fetcher
from tests.sim.loop import PROCESS, Process, SimLoop, in_process
from tests.sim.memory import Pool, SimMover

PATIENCE = Patience(answer_s=0.4, farewell_s=0.3, retry_s_min=0.02, retry_s_max=0.15, writers_s=0.05)


def later_reign(before: tuple[int, int], rng: Random, salts: Random) -> tuple[int, int]:
    """The wall clock gives epoch and salt: usually later ones, but clocks are set back and restarts may be quick."""
    draw, (epoch, former) = rng.random(), before
    later = max(1, epoch + (0 if draw < 0.1 else -1 if draw < 0.15 else 1))
    salt = salts.getrandbits(31)
    return later, salt if later != epoch else former + (salt * (2**31 - former) >> 31)


class MasterPart:
    """One reign of a master: core, driver and servicers."""

    def __init__(self, world: Any, process: Process, config: Config, epoch: int, salt: int) -> None:
        loop: SimLoop = world.loop
        offset_ms = int(1000 * process.clock_offset_s)

        def clock_ms() -> int:
            return int(1000 * loop.time()) + offset_ms

        self.core = Master(config, epoch=epoch, now=clock_ms(), salt=salt)
        self.driver = Driver(self.core, clock_ms)
        self.service = MasterService(self.driver)
        self.registry = NodeRegistry(self.driver)


class NodePart:
    """One life of a storage node: index, agent, fetcher, and a pool of real memory."""

    def __init__(self, world: Any, process: Process, node_id: str, incarnation: int, capacity: int) -> None:
        token = b"%s.%d" % (node_id.encode(), incarnation)
        self.node_id = node_id
        self.incarnation = incarnation
        self.process = process
        self.pool = Pool(process, node_id, token.ljust(16, b"."), capacity)
        self.index = Index([capacity])
        self.stop = asyncio.Event()
        segment = Segment(
            id=0,
            node_id=node_id,
            host_id=process.host,
            capacity_bytes=capacity,
            shm_path=f"/pools/{node_id}",
            shm_token=self.pool.token,
            engine_endpoint=f"{node_id}:1",
            engine_base=incarnation << 12,
            engine_protocol="tcp",
        )
        self._hello = Hello(
            version="sim", node_id=node_id, incarnation=incarnation, host_id=process.host, segments=[segment]
        )
        self._world = world

    async def run(self) -> None:
        fetcher = Fetcher(self.pool)  # type: ignore[arg-type]
        metrics: Any = SimpleNamespace(attaches=_NO_METRIC, commands=_NO_METRIC, is_attached=False)
        agent = Agent(
            [f"{self.node_id}:1"], self._hello, self.index, metrics, fetcher.fetch, self.pool.has_writer, PATIENCE
        )
        await agent.run(self.stop)
        self._world.node_left(self)


class ClientPart:
    """A store, as an application has it."""

    def __init__(self, process: Process, timeout_s: float, verify: bool = True) -> None:
        self.process = process
        self.open_ops: dict[object, None] = {}
        self.store = Store(Options(("master:1",), timeout_s, verify, ("shm", "engine"), "", None))


class SimMasterClient(MasterClient):
    """The client's own calls over the simulated network."""

    def __init__(self, world: Any, addresses: Any, stats: Any, zone: str) -> None:
        super().__init__((), stats, zone)
        self.addresses = list(addresses)
        self._stubs = [Stub(world)]
        world.stats.append(stats)


class Stub:
    def __init__(self, world: Any) -> None:
        self._world = world
        self._process = PROCESS.get()

    def __getattr__(self, name: str) -> Any:
        async def call(request: Any, timeout: float, metadata: None) -> Any:
            self._world.oracle.asks(name, request)
            return await self._world.net.call(self._process, name, request, timeout)

        setattr(self, name, call)
        return call


class _NoMetric:
    def labels(self, *_: Any) -> "_NoMetric":
        return self

    def inc(self) -> None:
        """Nobody scrapes a simulation."""


_NO_METRIC = _NoMetric()


def monotonic() -> float:
    """Each process has a clock of its own (invariant 14)."""
    loop: Any = asyncio.get_running_loop()
    return float(loop.time() + PROCESS.get().clock_offset_s)


@contextmanager
def installed(world: Any) -> Iterator[None]:
    """The product's modules see the simulation's clock, randomness, network and memory."""
    clock = SimpleNamespace(monotonic=monotonic, monotonic_ns=lambda: int(1e9 * monotonic()))
    rng = world.loop.rng
    names = {
        **dict.fromkeys(
            (
                "larder.aio.time",
                "larder.rpc.time",
                "larder.puts.time",
                "larder.writes.time",
                "larder.gets.time",
                "larder.races.time",
                "larder.background.time",
                "larder.copying.time",
                "larder.transports.shm.time",
                "services.storage_node.attachment.time",
                "services.storage_node.fetcher.time",
            ),
            clock,
        ),
        "larder.rpc.random": rng,
        "larder.mover.random": rng,
        "services.storage_node.agent.random": rng,
        "larder.rpc.os": SimpleNamespace(urandom=rng.randbytes),
        "larder.rpc.host_id": lambda: PROCESS.get().host,
        "larder.parts.MasterClient": lambda *args: SimMasterClient(world, *args),
        "larder.parts.Mover": lambda names, *args: SimMover(world, *args),
        "services.storage_node.fetcher.Mover": lambda names, *args: SimMover(world, *args),
        "services.storage_node.agent.open_stream": world.net.open_stream,
    }
    with ExitStack() as stack:
        for name, value in names.items():
            stack.enter_context(patch(name, value))
        yield


def start_node(world: Any, part: NodePart) -> None:
    part.process.part = part
    in_process(part.process, world.loop, part.run)
