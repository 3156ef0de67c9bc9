"""What the master shows of its core at a scrape."""

from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.master.core import messages as m
from services.master.core.packed import PackedKeys
from services.master.metrics import CoreCollector
from tests.unit.master.transcript import CONFIG, KIB, Cluster

PATIENT = replace(CONFIG, repair_after_ms=400, lost_ms=1500)


class Shown:
    """Samples of one scrape after the other."""

    def __init__(self, cluster: Cluster) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(CoreCollector(cluster.core.report))

    def __call__(self, name: str, **labels: str) -> float:
        value = self._registry.get_sample_value(f"larder_master_{name}", labels)
        assert value is not None, name
        return value

    def asked(self, op: str) -> tuple[float, float, float]:
        names = ("requested_keys_total", "hit_keys_total", "hit_bytes_total")
        requested, hits, size = (self(name, op=op) for name in names)
        return requested, hits, size


def filled(nodes: int, objects: int, copies: int, **options: Any) -> Cluster:
    cluster = Cluster(nodes=nodes, capacity=64 * KIB, **options)
    for number in range(objects):
        cluster.put(b"key %d" % number, KIB, copies)
    return cluster


@pytest.mark.parametrize("packed", [True, False])
def test_a_match_counts_every_key_that_it_was_asked_for_and_what_it_found_before_the_first_miss(packed: bool) -> None:
    cluster = filled(1, 5, 1)
    shown = Shown(cluster)
    names = [b"key 0", b"key 1", b"key 7", b"key 3"]
    cluster.match(PackedKeys(b"".join(names), 5) if packed else names)
    assert shown.asked("match") == (4, 2, 2 * KIB)
    assert shown.asked("lookup") == (0, 0, 0)
    cluster.match([b"key 7"])
    assert shown.asked("match") == (5, 2, 2 * KIB)


def test_a_match_that_waits_counts_once_with_what_it_found_in_the_end() -> None:
    cluster = filled(1, 1, 1)
    shown = Shown(cluster)
    started = cluster.start(b"key 1", KIB)
    assert started is not None
    cluster.match([b"key 0", b"key 1", b"key 2"], wait_ms=500)
    assert shown.asked("match") == (0, 0, 0)
    cluster.end(started)
    assert shown.asked("match") == (3, 2, 2 * KIB)
    cluster.pass_time(1000)
    assert shown.asked("match") == (3, 2, 2 * KIB)


def test_a_match_counts_no_bytes_of_what_cannot_be_read_now() -> None:
    cluster = filled(2, 4, 1)
    cluster.pass_time(500, silent=(0,))
    readable = cluster.answers[cluster.match([b"key 1", b"key 0"])]
    assert isinstance(readable, m.Matched)
    assert readable.matched < 2
    assert Shown(cluster).asked("match") == (2, readable.matched, readable.matched * KIB)


def test_a_lookup_counts_its_own() -> None:
    cluster = filled(1, 1, 1)
    cluster.lookup(b"key 0")
    cluster.lookup(b"none")
    assert Shown(cluster).asked("lookup") == (2, 1, KIB)
    assert Shown(cluster).asked("match") == (0, 0, 0)


def test_what_a_nodes_pool_is_used_for_adds_up_to_its_size_and_what_is_pinned_is_told_apart() -> None:
    cluster = filled(2, 6, 2)
    assert cluster.start(b"under way", 3 * KIB) is not None
    call = cluster.call()
    cluster.step(m.PutStart(call, call.to_bytes(16, "big"), [b"pinned"], [KIB], 2, pin=m.Pin.HARD))
    started = cluster.answers[call]
    assert isinstance(started, m.PutStarted)
    cluster.end(started)
    shown = Shown(cluster)
    reserved = 0.0
    for node in ("n0", "n1"):
        where = {"node": node, "tier": "dram"}
        uses = {use: shown("segment_bytes", use=use, **where) for use in ("live", "reserved", "quarantined", "free")}
        assert sum(uses.values()) == shown("capacity_bytes", **where) == 64 * KIB
        assert uses["live"] == 7 * KIB
        assert shown("pinned_bytes", **where) == KIB
        reserved += uses["reserved"]
    assert reserved == 3 * KIB


def below_target(cluster: Cluster) -> tuple[float, float]:
    shown = Shown(cluster)
    return shown("objects_below_target"), shown("copies_missing")


def test_what_lacks_copies_shows_until_they_are_made_again() -> None:
    cluster = filled(3, 4, 3, config=PATIENT)
    assert below_target(cluster) == (0, 0)
    cluster.pass_time(250, silent=(2,))
    assert below_target(cluster) == (0, 0), "it may only blink"
    cluster.pass_time(700, silent=(2,))
    assert below_target(cluster) == (4, 4)
    cluster.pass_time(50)
    assert below_target(cluster) == (0, 0), "it is back"
    cluster.pass_time(2000, silent=(1, 2))
    assert below_target(cluster) == (4, 8)
    cluster.step(m.Remove(cluster.call(), b"r" * 16, [b"key 0"]))
    assert below_target(cluster) == (3, 6), "what is gone lacks nothing"
    cluster.infos += [m.SegmentInfo(64 * KIB, ways=b"new %d" % number) for number in range(2)]
    for number in (3, 4):
        cluster.attach(number, stream=10 + number)
    cluster.pass_time(5000)
    assert below_target(cluster) == (0, 0)


def test_what_cannot_be_read_is_not_below_its_target() -> None:
    cluster = filled(2, 3, 2, config=PATIENT)
    cluster.pass_time(900, silent=(0, 1))
    assert below_target(cluster) == (0, 0)


class Unwalked(dict[bytes, Any]):
    """A table nobody may walk through."""

    def __iter__(self) -> Any:
        raise AssertionError("a scrape looked at every object")

    keys = values = items = __iter__


def test_a_scrape_looks_at_no_object() -> None:
    cluster = filled(2, 3, 2)
    state = cluster.core.state
    state.objects = Unwalked(state.objects)
    registry = CollectorRegistry()
    registry.register(CoreCollector(cluster.core.report))
    assert b"larder_master_objects 3.0" in generate_latest(registry)
