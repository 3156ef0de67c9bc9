"""Transcripts of the core: copies in distinct zones, then on distinct hosts, and the near ones first."""

from dataclasses import replace

import pytest

from services.master.core import messages as m
from tests.unit.master.transcript import CONFIG, KIB, Cluster


def zones(cluster: Cluster, key: bytes) -> list[str]:
    segments = cluster.core.state.segments
    return [segments[copy.segment].node.zone for copy in cluster.core.state.objects[key].slices[0].copies]


def placed(cluster: Cluster, places: m.Places) -> list[str]:
    """The zones of the first slice's copies, in the order they are offered."""
    return [places.segments[index].zone for index in places.copy_segments[: places.copy_counts[0]]]


def test_copies_go_to_distinct_zones_before_distinct_nodes() -> None:
    cluster = Cluster(nodes=4, zones=("a", "a", "a", "b"))
    for i in range(4):
        cluster.put(b"k%d" % i, KIB, copies=2)
        assert sorted(zones(cluster, b"k%d" % i)) == ["a", "b"]
    cluster.put(b"three", KIB, copies=3)
    assert sorted(zones(cluster, b"three")) == ["a", "a", "b"]


@pytest.mark.parametrize(
    ("host", "zone", "first"), [("h0", "c", "a"), ("elsewhere", "c", "c"), ("elsewhere", "b", "b"), ("h2", "", "c")]
)
def test_the_callers_host_then_its_zone_are_written_and_read_first(host: str, zone: str, first: str) -> None:
    cluster = Cluster(nodes=3, zones=("a", "b", "c"))
    started = cluster.start(b"k", KIB, copies=3, host=host, zone=zone)
    assert started is not None
    assert placed(cluster, started.places)[0] == first
    cluster.end(started)
    assert placed(cluster, cluster.lookup(b"k", host, zone).places)[0] == first


@pytest.mark.parametrize("copies", [2, 3])
def test_whoever_asks_is_offered_the_nearest_copy_first(copies: int) -> None:
    """Wherever the put was asked for."""
    cluster = Cluster(nodes=3, zones=("a", "b", "b"))
    cluster.put(b"k", KIB, copies=copies)
    segments = cluster.core.state.segments
    nodes = [segments[copy.segment].node for copy in cluster.core.state.objects[b"k"].slices[0].copies]
    for node in nodes:
        for host, zone in ((node.host_id, "a"), (node.host_id, "b"), (node.host_id, ""), ("elsewhere", node.zone)):
            places = cluster.lookup(b"k", host, zone).places
            first = places.segments[places.copy_segments[0]]
            assert first.node_id == node.node_id if host == node.host_id else first.zone == zone
            assert len(places.copy_segments) == copies


def test_without_the_callers_zone_none_is_nearer() -> None:
    cluster = Cluster(nodes=2, zones=("", "b"))
    started = cluster.start(b"k", KIB, copies=2)
    assert started is not None
    cluster.end(started)
    order = placed(cluster, cluster.lookup(b"k").places)
    assert placed(cluster, cluster.lookup(b"k", "", "unknown").places) == order


def test_a_striped_object_begins_in_the_callers_zone() -> None:
    cluster = Cluster(nodes=4, zones=("a", "b", "a", "b"))
    started = cluster.start(b"large", 12 * KIB, zone="b")
    assert started is not None
    assert {segment.zone for segment in started.places.segments} == {"b"}
    assert len(started.places.segments) == 2


def test_a_lost_copy_is_made_again_in_a_zone_that_has_none_and_surplus_leaves_distinct_zones() -> None:
    config = replace(CONFIG, repair_after_ms=50, lost_ms=60_000)
    cluster = Cluster(nodes=4, zones=("a", "b", "a", "c"), config=config)
    cluster.put(b"fill", 3 * KIB, copies=1)
    cluster.put(b"k", KIB, copies=2)
    segments = cluster.core.state.segments
    lost = segments[cluster.core.state.objects[b"k"].slices[0].copies[0].segment].node
    kept = zones(cluster, b"k")[1]
    assert lost.stream is not None
    number = int(lost.node_id[1:])
    claims = [
        held
        for effect in cluster.sent
        if isinstance(effect, m.Record) and effect.stream == lost.stream
        for held in effect.copies
    ]
    cluster.step(m.Broken(lost.stream))
    cluster.pass_time(200)
    made = zones(cluster, b"k")[-1]
    assert made not in (kept, lost.zone), "the third zone"
    cluster.attach(number, stream=99, held=tuple(claims), epoch=7)
    cluster.pass_time(100)
    assert len(set(zones(cluster, b"k"))) == 2
