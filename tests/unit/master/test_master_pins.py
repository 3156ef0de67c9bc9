"""Transcripts of the core: pinned objects. Hard ones are never evicted, soft ones when nothing else is left."""

from dataclasses import replace

import pytest

from services.master.core import messages as m
from services.master.core.messages import Pin, Result
from tests.unit.master.transcript import CONFIG, KIB, Cluster

HALF = replace(CONFIG, pin_share=0.5)


def put(cluster: Cluster, keys: list[bytes], pin: Pin, copies: int = 1, size: int = KIB) -> list[Result]:
    call = cluster.call()
    command = m.PutStart(call, call.to_bytes(16, "big"), keys, [size] * len(keys), copies, pin=pin, wait_ms=50)
    cluster.step(command)
    cluster.pass_time(100)
    started = cluster.answers[call]
    assert isinstance(started, m.PutStarted)
    opened = [write_id for write_id in started.write_ids if write_id]
    call = cluster.call()
    counts = [count for count in started.places.slice_counts if count]
    cluster.step(m.PutEnd(call, call.to_bytes(16, "big"), opened, counts, [1] * sum(counts)))
    return started.results


def pinned(cluster: Cluster) -> list[int]:
    return [segment.pinned_bytes for segment in cluster.core.state.segments.values()]


def test_hard_pins_stay_whatever_comes_and_soft_ones_go_last() -> None:
    cluster = Cluster(nodes=1, config=HALF)
    put(cluster, [b"hard"], Pin.HARD)
    put(cluster, [b"soft"], Pin.SOFT)
    put(cluster, [b"plain"], Pin.NONE)
    for i in range(40):
        put(cluster, [b"k%d" % i], Pin.NONE)
    assert cluster.found(b"hard")
    assert cluster.found(b"soft")
    assert not cluster.found(b"plain")
    put(cluster, [b"h%d" % i for i in range(7)], Pin.HARD)
    put(cluster, [b"s%d" % i for i in range(9)], Pin.SOFT)
    assert all(cluster.found(b"h%d" % i) for i in range(7))
    assert not cluster.found(b"soft"), "nothing else was left"
    assert cluster.found(b"s0"), "the first of a batch stays longest"


def test_more_pinned_objects_than_eviction_looks_at_do_not_stand_in_its_way() -> None:
    cluster = Cluster(nodes=1, capacity=256 * KIB, config=replace(CONFIG, pin_share=0.9))
    assert put(cluster, [b"h%d" % i for i in range(200)], Pin.HARD) == [Result.OK] * 200
    for i in range(60):
        assert put(cluster, [b"k%d" % i], Pin.NONE) == [Result.OK]
    assert all(cluster.found(b"h%d" % i) for i in range(200))


def test_above_the_budget_a_hard_pin_is_refused_and_below_it_accepted_again() -> None:
    cluster = Cluster(nodes=2, config=HALF)
    keys = [b"h%d" % i for i in range(20)]
    assert put(cluster, keys, Pin.HARD) == [Result.OK] * 16 + [Result.PIN_REFUSED] * 4
    assert pinned(cluster) == [8 * KIB, 8 * KIB]
    assert cluster.core.state.counters.refused_pins == 4
    assert put(cluster, [b"plain"], Pin.NONE) == [Result.OK]
    assert put(cluster, [b"soft"], Pin.SOFT) == [Result.OK]
    cluster.step(m.Remove(cluster.call(), b"d" * 16, [b"h0"]))
    assert put(cluster, [b"more", b"one more"], Pin.HARD) == [Result.OK, Result.PIN_REFUSED]


@pytest.mark.parametrize("copies", [2, 3])
def test_the_budget_counts_each_copy_and_writes_under_way(copies: int) -> None:
    cluster = Cluster(nodes=3, config=HALF)
    call = cluster.call()
    keys = [b"w%d" % i for i in range(8)]
    cluster.step(m.PutStart(call, call.to_bytes(16, "big"), keys, [KIB] * 8, copies, pin=Pin.HARD))
    left = 24 - 8 * copies
    assert put(cluster, [b"h%d" % i for i in range(9)], Pin.HARD).count(Result.OK) == left
    cluster.step(m.PutAbort(900, b"a" * 16, cluster.answers[call].write_ids))  # type: ignore[union-attr]
    assert put(cluster, [b"after"], Pin.HARD, copies) == [Result.OK]


def test_a_striped_object_needs_room_for_all_of_it() -> None:
    cluster = Cluster(nodes=2, config=HALF)
    assert put(cluster, [b"large"], Pin.HARD, size=17 * KIB) == [Result.PIN_REFUSED]
    assert put(cluster, [b"fits"], Pin.HARD, size=16 * KIB) == [Result.OK]


def test_a_new_master_learns_what_is_pinned() -> None:
    cluster = Cluster(nodes=1)
    put(cluster, [b"hard"], Pin.HARD)
    (record,) = [effect for effect in cluster.sent if isinstance(effect, m.Record)]
    new = Cluster(nodes=0, config=HALF)
    new.infos = cluster.infos
    new.attach(0, held=(record.copies[0]._replace(segment=1),), epoch=7)
    assert pinned(new) == [KIB]
    new.pass_time(CONFIG.write_ttl_ms + CONFIG.late_write_ms)
    for i in range(30):
        put(new, [b"k%d" % i], Pin.NONE)
    assert new.found(b"hard")


def test_a_pinned_object_moves_with_a_drain() -> None:
    cluster = Cluster(nodes=2, config=HALF)
    put(cluster, [b"h%d" % i for i in range(4)], Pin.HARD)
    cluster.step(m.Drain(900, "n0"))
    cluster.pass_time(1000)
    assert pinned(cluster) == [4 * KIB]
    assert list(cluster.core.state.nodes) == ["n1"]
