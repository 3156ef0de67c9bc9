"""What becomes of storage nodes, by real processes: one that cannot be reached is asked, and done without."""

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import larder
import pytest
from larder.v1 import master_pb2, master_pb2_grpc
from larder.wire import pack_keys

from demo.cluster import Cluster
from demo.traffic import metric

NODES = ("node-1", "node-2", "node-3")
ZONES = ("rack-a", "rack-a", "rack-b")
SILENCE_S = 2.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        cluster.start_master()
        for node, zone in zip(NODES, ZONES, strict=True):
            cluster.start_node(node, "--zone", zone, dram="64MB")
        cluster.wait_ready()
        yield cluster


def test_a_frozen_node_is_found_out_when_a_client_reports_it(cluster: Cluster) -> None:
    with larder.connect(cluster.master) as store, grpc.insecure_channel(cluster.master) as channel:
        assert store.put("key", bytes(100_000), copies=2).copies == 2
        stub = master_pb2_grpc.MasterStub(channel)
        lookup = master_pb2.LookupRequest(keys=pack_keys([b"key"]))
        places = stub.Lookup(lookup, timeout=5).places
        frozen = places.segments[places.copy_segments[0]]
        cluster.processes[frozen.node_id].pause()
        begun = time.monotonic()
        report = master_pb2.ReportRequest(
            keys=pack_keys([b"key"]),
            slices=[0],
            segment_ids=[frozen.id],
            offsets=[places.copy_offsets[0]],
            faults=[master_pb2.FAULT_UNREACHABLE],
        )
        assert stub.Report(report, timeout=5).dropped == 0
        while frozen.node_id in {segment.node_id for segment in stub.Lookup(lookup, timeout=5).places.segments}:
            assert time.monotonic() - begun < SILENCE_S
            time.sleep(0.02)
        print(f"suspect {time.monotonic() - begun:.2f} s after the report")
        assert metric(cluster.metrics["master"], "larder_master_failed_probes_total") == 1
        cluster.processes[frozen.node_id].kill()
        assert store.get("key") == bytes(100_000)


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_a_copy_that_fails_is_made_elsewhere_within_the_same_put(cluster: Cluster, fault: str) -> None:
    """By the engine; the fault comes when the places are given out and nothing is written yet."""
    values = {b"key-%d" % i: bytes([i]) * (1_000_000 + i) for i in range(8)}  # of unequal sizes: spread over the nodes
    with larder.connect(cluster.master, transports=("engine",)) as store:
        for i in range(3):
            assert store.put(b"warm-%d" % i, bytes(1000), copies=2).copies == 2
        begun = time.monotonic()
        results = store.put_many(
            list(values), list(values.values()), copies=2, started=getattr(cluster.processes["node-2"], fault)
        )
        print(f"{fault}: put in {time.monotonic() - begun:.2f} s")
        assert results == [larder.PutResult(2, False)] * len(values)
        assert metric(cluster.metrics["master"], "larder_master_degraded_puts_total") > 0
        cluster.processes["node-2"].kill()
        assert store.get_many(list(values)) == list(values.values())


def test_copies_lie_in_distinct_zones(cluster: Cluster) -> None:
    with larder.connect(cluster.master, zone="rack-b") as store, grpc.insecure_channel(cluster.master) as channel:
        keys = [b"key-%d" % i for i in range(6)]
        for key in keys:
            assert store.put(key, bytes(100_000), copies=2).copies == 2
        stub = master_pb2_grpc.MasterStub(channel)
        nodes = stub.Status(master_pb2.StatusRequest(), timeout=5).nodes
        assert {node.node_id: node.zone for node in nodes} == dict(zip(NODES, ZONES, strict=True))
        for key in keys:
            lookup = master_pb2.LookupRequest(keys=pack_keys([key]), zone="rack-b")
            places = stub.Lookup(lookup, timeout=5).places
            assert sorted(segment.zone for segment in places.segments) == ["rack-a", "rack-b"]
