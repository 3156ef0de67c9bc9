"""The `master` command: settings in, a serving master out, drained on SIGTERM."""

import asyncio
import secrets
import sys
import time
from collections.abc import Sequence

from larder.addresses import join
from larder.v1 import master_pb2_grpc, node_pb2_grpc
from prometheus_client import CollectorRegistry

from services.common.ops import Ops
from services.common.rpc import RpcServer
from services.common.service import announce, collect_rarely, run
from services.common.settings import load
from services.common.version import show_build
from services.master import page
from services.master.config import MasterSettings
from services.master.core.master import Master
from services.master.core.tables import Config
from services.master.driver import Driver, monotonic_ms
from services.master.metrics import CoreCollector
from services.master.overview import Overview
from services.master.rpc import SERVICES, MasterService, NodeRegistry

DRAIN_S = 3.0


def main(argv: Sequence[str] | None = None, called: str = "") -> None:
    settings = load(MasterSettings, prog="master", argv=argv, called=called)
    collect_rarely()
    status = run(
        lambda stop: serve(settings, stop),
        prog="master",
        log_level=settings.log_level,
        log_format=settings.log_format,
        capture=True,
    )
    sys.exit(status)


async def serve(settings: MasterSettings, stop: asyncio.Event) -> None:
    config = Config(
        slice_bytes=settings.slice_bytes,
        copies=settings.copies,
        pin_share=settings.pin_share,
        lease_ms=settings.lease_ms,
        high_watermark=settings.high_watermark,
        repair_bytes_per_s=settings.repair_mbps * 1_000_000 // 8,
    )
    # The wall clock grows from one start to the next; if it was set back, a node that obeyed a later epoch says so.
    driver = Driver(Master(config, epoch=int(time.time()), now=monotonic_ms(), salt=secrets.randbits(31)))
    registry = CollectorRegistry()
    registry.register(CoreCollector(driver.report))
    show_build(registry, "master")
    rpc = RpcServer(settings.host, settings.port, "master", registry)
    master_pb2_grpc.add_MasterServicer_to_server(MasterService(driver), rpc.server)
    node_pb2_grpc.add_NodeRegistryServicer_to_server(NodeRegistry(driver), rpc.server)
    overview = Overview(driver, rpc.answered)
    # Ready even while free space rests: it can be read from, and nodes have to find it.
    ops = Ops(
        settings.host,
        settings.metrics_port,
        registry,
        lambda: not stop.is_set(),
        driver.rests,
        page.routes(overview),
    )
    port = await rpc.start(SERVICES)
    try:
        metrics_port = await ops.start()
        grpc, metrics = join(settings.host, port), join(settings.host, metrics_port)
        announce(f"master ready: grpc {grpc}, metrics http://{metrics}/metrics")
        async with asyncio.TaskGroup() as tasks:
            failing = tasks.create_task(driver.failure())
            watching = tasks.create_task(overview.watch())
            await stop.wait()
            failing.cancel()
            watching.cancel()
    finally:
        driver.end_streams("the master is stopping")
        await rpc.close(DRAIN_S)
        await ops.close()
        driver.close()
