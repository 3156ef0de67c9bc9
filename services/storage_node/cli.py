"""The command storage-node: reads the settings, assembles the parts, and takes them apart in reverse order.

The pool is announced only once it is pre-faulted and the engine serves it. After a graceful leave the file is removed:
its objects no longer belong to the cluster.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Annotated, Literal

from larder import engine_ports
from larder.addresses import join
from larder.engine_ports import Ports
from prometheus_client import CollectorRegistry
from pydantic import AfterValidator, Field

from services.common.ops import Ops
from services.common.service import announce, collect_rarely, run
from services.common.settings import Host, HostPorts, Names, Port, ServiceSettings, Size, at_least, load
from services.common.version import show_build
from services.storage_node.advertise import is_unspecified, own_address
from services.storage_node.agent import Agent
from services.storage_node.core.index import Index
from services.storage_node.engine import P2P, Engine, EngineMissing
from services.storage_node.fetcher import Fetcher
from services.storage_node.identity import own_pool
from services.storage_node.metrics import Metrics
from services.storage_node.pool import Pool
from services.storage_node.wire import Reachable, hello_to_wire

logger = logging.getLogger(__name__)
PROG = "storage-node"
LINGER_S = 65.0  # the kernel keeps lingering connections for 60
LABEL = "([A-Za-z0-9][A-Za-z0-9._-]{0,63})"


def _check_reachable(host: str) -> str:
    if is_unspecified(host):
        raise ValueError("other hosts cannot connect to that; give one of this host's addresses")
    return host


def _check_ports(ports: str) -> str:
    if ports:
        engine_ports.parse(ports, least=2 * engine_ports.EACH)
    return ports


class Settings(ServiceSettings):
    """Holds copies of objects in this host's memory, as told by a master, for clients to read and write directly."""

    master: HostPorts = Field(min_length=1, description="addresses of the master and its standbys")
    node_id: str = Field("", pattern=rf"^{LABEL}?$", description="unique in the cluster; none: from the host's name")
    zone: str = Field(
        "", pattern=rf"^{LABEL}?$", description="what fails together, such as a rack: copies go to distinct zones"
    )
    host: Host = Field("", description="address that --metrics-port listens on and clients are told; none: 127.0.0.1")
    advertise: Annotated[Host, AfterValidator(_check_reachable)] = Field(
        "", description="address that clients on other hosts are told; none: --host, else the one towards the master"
    )
    dram: Annotated[Size, at_least(1_000_000, "a smaller pool holds no KV block")] = Field(
        "2GB", validate_default=True, description="size of the memory pool"
    )
    pool_dir: Path = Field(Path("/dev/shm"), description="a tmpfs for the pool's file")  # noqa: S108
    protocol: Literal["tcp", "rdma"] = Field("tcp", description="protocol of the transfer engine")
    device_name: Names = Field((), description="RDMA devices; none: all")
    metadata_server: str = Field(
        P2P, pattern=rf"^({P2P}|(https?|etcd)://.+)$", description="of the transfer engine; clients must use the same"
    )
    engine_ports: Annotated[str, AfterValidator(_check_ports)] = Field(
        "", description="MIN-MAX: the transfer engine listens on four of these ports; none: 15000-17000"
    )
    metrics_port: Port = Field(9102, description="HTTP port of /health, /ready and /metrics; 0 takes a free one")


def main(argv: Sequence[str] | None = None, called: str = "") -> int:
    settings = load(Settings, prog=PROG, argv=argv, called=called)
    collect_rarely()
    return run(
        lambda stop: serve(settings, stop),
        prog=PROG,
        log_level=settings.log_level,
        log_format=settings.log_format,
        capture=True,
    )


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """The node's life, until `stop` is set."""
    async with AsyncExitStack() as parts:
        registry = CollectorRegistry()
        show_build(registry, PROG)
        index = Index([settings.dram])
        metrics = Metrics(index, ("dram",))
        metrics_host = settings.host or "127.0.0.1"
        ops = Ops(metrics_host, settings.metrics_port, registry, lambda: metrics.is_attached)
        parts.push_async_callback(ops.close)
        metrics_port = await ops.start()
        address = await own_address(settings.host, settings.advertise, settings.master, stop)
        if not address:
            return
        node_id, pool = await asyncio.to_thread(
            own_pool, settings.pool_dir, settings.node_id, settings.dram, wall_clock_ns=time.time_ns()
        )
        parts.callback(pool.close)
        metrics.show(registry, node_id)
        if not await pool.prefault(stop):
            return
        ports = engine_ports.parse(settings.engine_ports) if settings.engine_ports else None
        if ports is not None and not await _outwait(ports, stop):
            return
        engine = await asyncio.to_thread(_start_engine, settings, address, node_id, pool, ports)
        reachable = Reachable()
        if engine is not None:
            parts.callback(engine.close)
            metrics.engine_up.set(1)
            reachable = Reachable(engine.endpoint, engine.base, engine.protocol)
        hello = hello_to_wire(node_id, str(pool.path), pool.header, reachable, settings.zone, address)
        fetcher = Fetcher(pool)
        parts.push_async_callback(fetcher.close)
        agent = Agent(settings.master, hello, index, metrics, fetcher.fetch, pool.has_writer)
        where = f"engine {reachable.endpoint or 'none'}, metrics http://{join(metrics_host, metrics_port)}/metrics"
        ready = f"{PROG} ready: node {node_id}, pool {pool.path}, {where}"
        async with asyncio.TaskGroup() as group:
            announcing = group.create_task(_announce(agent, ready))
            await agent.run(stop)
            announcing.cancel()


async def _outwait(ports: Ports, stop: asyncio.Event) -> bool:
    """A restarted node may find connections of its former life on its ports. False if `stop` came first."""
    until = time.monotonic() + LINGER_S
    if engine_ports.lingers(ports):
        logger.warning("waiting for ports of %s, where connections of an earlier process linger", ports)
    while engine_ports.lingers(ports) and time.monotonic() < until:
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1.0)
            return False
    return True


def _start_engine(settings: Settings, address: str, node_id: str, pool: Pool, ports: Ports | None) -> Engine | None:
    try:
        engine = Engine(
            host=address,
            unique_name=f"{node_id}-{pool.header.incarnation}",
            metadata_server=settings.metadata_server,
            protocol=settings.protocol,
            device_names=settings.device_name,
            ports=ports,
        )
    except EngineMissing as missing:
        logger.warning("%s", missing)
        return None
    engine.register(pool.data_address, pool.capacity_bytes)
    return engine


async def _announce(agent: Agent, line: str) -> None:
    await agent.attached.wait()
    announce(line)
