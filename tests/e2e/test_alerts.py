"""Each alert fires for its cause: a real Prometheus watches a store and a proxy of real processes while they break.

Engines here compute nothing; alerts about what vLLM gets from the store are in test_vllm_dashboards. `-s` shows when
each fired and what it said.
"""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import larder
import pytest
from larder.v1 import master_pb2, master_pb2_grpc
from larder.wire import pack_keys

from demo.cluster import HOST, Cluster, free_port
from tests.e2e.pools import zero_pools
from tests.e2e.watch import Prometheus
from tests.e2e.xpyd import XpYd, load

NODES = ("node-1", "node-2", "node-3")
POOL_BYTES = 16 << 20
OBJECT_BYTES = 256 << 10
WAITING_MAX = 256
SLOW_REPAIR = ("--repair-mbps", "2")  # an object a second


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("watched")) as cluster:
        cluster.start_master(*SLOW_REPAIR)
        for node in NODES:
            cluster.start_node(node, dram=str(POOL_BYTES))
        cluster.wait_ready()
        yield cluster


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the proxy finds its decode engines."""
    return tmp_path_factory.mktemp("listing") / "engines.json"


@pytest.fixture(scope="module")
def fleet(listing: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[XpYd]:
    with XpYd(tmp_path_factory.mktemp("fleet")) as fleet:
        for name in ("p1", "d1", "d2"):
            fleet.start_engine(name, "--token-ms", "20")
        listing.write_text(json.dumps({"decode": [fleet.addresses["d1"], fleet.addresses["d2"]]}))
        fleet.start_proxy(["p1"], [], "--max-concurrency", "2", "--discover", f"file://{listing}")
        yield fleet


@pytest.fixture(scope="module")
def prometheus(store: Cluster, fleet: XpYd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    targets = {"proxy": [fleet.url.removeprefix("http://")], "engine": []} | of_store(store)
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), targets)
    prometheus.await_value("up", lambda found: len(found) == 5 and all(sample.value for sample in found))
    yield prometheus
    prometheus.process.stop()


def of_store(store: Cluster) -> dict[str, list[str]]:
    return {"master": [store.metrics["master"]], "storage-node": [store.metrics[node] for node in NODES]}


def restart(store: Cluster, prometheus: Prometheus, *nodes: str) -> None:
    """Bring these nodes back, and let Prometheus know where."""
    for node in nodes:
        store.start_node(node, dram=str(POOL_BYTES))
    store.wait_ready()
    prometheus.watch(of_store(store))
    prometheus.await_value('larder_master_nodes{state="attached"}', lambda found: [s.value for s in found] == [3])


@contextmanager
def silent_before(prometheus: Prometheus, *names: str) -> Iterator[None]:
    """These do not fire yet, and do when what is inside was done."""
    assert not set(names) & set(prometheus.firing())
    yield
    prometheus.await_firing(*names)


def test_nothing_fires_while_all_is_well(prometheus: Prometheus) -> None:
    prometheus.await_value("larder:fill:ratio", lambda found: len(found) == 3)
    assert prometheus.firing() == {}


def test_a_corrupt_copy(store: Cluster, prometheus: Prometheus) -> None:
    with larder.connect(store.master) as client:
        client.put(b"only", bytes(range(256)) * 100)
        with silent_before(prometheus, "LarderCorruptCopies", "LarderObjectsLost"):
            zero_pools(store)
            with pytest.raises(larder.DataLost):
                client.get(b"only")


def test_a_drain_that_takes_its_time(store: Cluster, prometheus: Prometheus) -> None:
    keys = [b"moved-%d" % number for number in range(24)]
    with larder.connect(store.master) as client, grpc.insecure_channel(store.master) as channel:
        for key in keys:
            client.put(key, bytes(OBJECT_BYTES))
        master = master_pb2_grpc.MasterStub(channel)
        with silent_before(prometheus, "LarderDrainStuck"):
            master.Drain(master_pb2.DrainRequest(node_id="node-3"), timeout=5)
        master.Drain(master_pb2.DrainRequest(node_id="node-3", cancel=True), timeout=5)
        for key in keys:
            client.remove(key)


def test_a_node_that_dies(store: Cluster, prometheus: Prometheus) -> None:
    with larder.connect(store.master) as client:
        client.put(b"everywhere", bytes(OBJECT_BYTES), copies=3)
        with silent_before(prometheus, "LarderNodeDown", "LarderCopiesBelowTarget"):
            store.processes["node-3"].kill()
        client.remove(b"everywhere")
    restart(store, prometheus, "node-3")


def test_a_repair_from_a_corrupt_copy_and_no_nodes_at_all(store: Cluster, prometheus: Prometheus) -> None:
    with larder.connect(store.master) as client:
        store.processes["node-3"].kill()
        client.put(b"two", bytes(range(256)) * 1000, copies=2)  # on the other two
        zero_pools(store, "node-1")
        restart(store, prometheus, "node-3")
        with silent_before(prometheus, "LarderRepairsFail"):
            store.processes["node-2"].kill()
    with silent_before(prometheus, "LarderNoNodes"):
        for node in ("node-1", "node-3"):
            store.processes[node].kill()
    restart(store, prometheus, *NODES)


def test_pools_full_of_what_is_being_read(store: Cluster, prometheus: Prometheus) -> None:
    keys = [b"full-%03d" % number for number in range(3 * POOL_BYTES // OBJECT_BYTES)]
    with larder.connect(store.master) as client, grpc.insecure_channel(store.master) as channel:
        for key in keys:
            client.put(key, bytes(OBJECT_BYTES))
        master = master_pb2_grpc.MasterStub(channel)
        # Who never says that he has read keeps them for 10 s; so many puts of one client may wait, and no more.
        master.Lookup(master_pb2.LookupRequest(keys=pack_keys(keys)), timeout=5)
        with silent_before(prometheus, "LarderPutsWait", "LarderPoolsFull", "LarderMasterRefuses"):
            puts = [master.PutStart.future(put_start(number), timeout=20) for number in range(WAITING_MAX + 10)]
            prometheus.await_value('larder_master_rpc_seconds_count{result="RESOURCE_EXHAUSTED"}', bool)
            puts += [master.PutStart.future(put_start(WAITING_MAX + number), timeout=20) for number in range(10, 20)]
        codes = Counter(put.code() for put in puts)
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED: 20, grpc.StatusCode.OK: WAITING_MAX}


def put_start(number: int) -> master_pb2.PutStartRequest:
    name = number.to_bytes(16, "big")
    return master_pb2.PutStartRequest(
        request_id=name, keys=pack_keys([name]), sizes=[POOL_BYTES // 2], wait_ms=6000, client_id=b"one"
    )


def test_a_node_that_finds_no_master(store: Cluster, prometheus: Prometheus) -> None:
    """Its operator named the wrong one."""
    metrics_port = free_port()
    lost = store.start_program(
        "lost", "storage-node", "--master", f"{HOST}:{free_port()}", "--node-id", "lost", "--dram", "1MB",
        "--host", HOST, "--pool-dir", str(store.pool_dir), "--metrics-port", str(metrics_port), ready=".*cannot attach",
    )  # fmt: skip
    store.wait_ready()
    with silent_before(prometheus, "LarderNodeDetached"):
        prometheus.watch({"storage-node": [*of_store(store)["storage-node"], f"{HOST}:{metrics_port}"]})
    prometheus.watch(of_store(store))
    lost.stop()


def test_another_version_and_no_transfer_engine(store: Cluster, prometheus: Prometheus, tmp_path: Path) -> None:
    """A node of the next release, on a host where the engine's package was forgotten."""
    (tmp_path / "mooncake").mkdir()
    (tmp_path / "mooncake/__init__.py").touch()
    (tmp_path / "larder_server-99.dist-info").mkdir()
    (tmp_path / "larder_server-99.dist-info/METADATA").write_text("Name: larder-server\nVersion: 99\n")
    metrics_port = free_port()
    odd = store.start_program(
        "odd", "storage-node", "--master", store.master, "--node-id", "odd", "--dram", "1MB", "--host", HOST,
        "--pool-dir", str(store.pool_dir), "--metrics-port", str(metrics_port), ready="storage-node ready",
        env={"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    store.wait_ready()
    with silent_before(prometheus, "LarderVersionsDiffer", "LarderNodeEngineDown"):
        prometheus.watch({"storage-node": [*of_store(store)["storage-node"], f"{HOST}:{metrics_port}"]})
    prometheus.watch(of_store(store))
    odd.stop()


def test_a_master_that_dies_again_and_again(store: Cluster, prometheus: Prometheus) -> None:
    port, metrics_port = int(store.master.rpartition(":")[2]), store.metrics["master"].rpartition(":")[2]
    with silent_before(prometheus, "LarderMasterDown"):
        store.processes["master"].kill()
    assert not {"LarderNodeDetached", "LarderMasterRestarts"} & set(prometheus.firing())
    with silent_before(prometheus, "LarderMasterRestarts"):
        for _ in range(3):
            store.processes["master"].kill()
            [former] = prometheus.query("last_over_time(larder_master_epoch[1m])")
            # An epoch is the second of the start, unless the nodes know of a later one.
            time.sleep(max(0.0, former.value + 1 - time.time()))
            store.start_master(*SLOW_REPAIR, "--metrics-port", metrics_port, port=port)
            prometheus.await_value("larder_master_epoch", lambda found, former=former: found and found != [former])


def test_a_master_that_stands_by_dies(store: Cluster, prometheus: Prometheus) -> None:
    metrics_port = free_port()
    other = store.start_program(
        "other", "master", "--port", "0", "--metrics-port", str(metrics_port), ready="master ready"
    )  # fmt: skip
    store.wait_ready()
    prometheus.watch({"master": [*of_store(store)["master"], f"{HOST}:{metrics_port}"]})
    prometheus.await_value("sum(up{job='master'})", lambda found: [sample.value for sample in found] == [2])
    with silent_before(prometheus, "LarderOtherMasterDown"):
        other.kill()
    assert "LarderMasterDown" not in prometheus.firing()
    prometheus.watch(of_store(store))


async def answered(fleet: XpYd, requests: int, *, tokens: int = 4, at_a_time: int = 8) -> list[str]:
    done = await load(fleet.url, requests, at_a_time, stream=lambda _: True, tokens=tokens)
    return [each.error for each in done if not each.error]


def test_a_list_of_engines_that_is_gone(fleet: XpYd, prometheus: Prometheus, listing: Path) -> None:
    with silent_before(prometheus, "LarderDiscoveryFails"):
        listing.rename(listing.with_suffix(".gone"))
    listing.with_suffix(".gone").rename(listing)
    prometheus.await_value("larder_proxy_discovery_up", lambda found: [sample.value for sample in found] == [1])


async def test_more_requests_than_are_let_through(fleet: XpYd, prometheus: Prometheus) -> None:
    names = ("LarderRequestsQueue", "LarderProxySlow")
    assert not set(names) & set(prometheus.firing())
    firing = asyncio.create_task(asyncio.to_thread(prometheus.await_firing, *names))
    while not firing.done():  # a batch takes 9 s, and for most of them requests wait
        assert len(await answered(fleet, 12, tokens=75)) == 12
    await firing


async def test_engines_that_die(fleet: XpYd, prometheus: Prometheus) -> None:
    with silent_before(prometheus, "LarderEngineDown"):
        fleet.engines["d1"].kill()
    with silent_before(prometheus, "LarderNoEngines", "LarderPrefillSkipped"):
        fleet.engines["p1"].kill()
        for _ in range(4):
            assert len(await answered(fleet, 20)) == 20
            await asyncio.sleep(0.5)
    with silent_before(prometheus, "LarderRequestsFail"):
        fleet.engines["d2"].kill()
        for _ in range(4):
            assert await answered(fleet, 10) == []
            await asyncio.sleep(0.5)
    for name in ("p1", "d1", "d2"):
        fleet.start_engine(name)


async def test_an_engine_that_fails_what_it_is_sent(fleet: XpYd, prometheus: Prometheus) -> None:
    fleet.engines["d2"].stop()
    fleet.start_engine("d2", "--fails")
    prometheus.await_value("sum(larder_proxy_engine_up)", lambda found: found[0].value == 3)
    with silent_before(prometheus, "LarderBreakerOpen"):
        assert len(await answered(fleet, 20)) == 20


def test_a_proxy_that_dies(fleet: XpYd, prometheus: Prometheus) -> None:
    assert fleet.proxy is not None
    with silent_before(prometheus, "LarderProxyDown"):
        fleet.proxy.kill()
