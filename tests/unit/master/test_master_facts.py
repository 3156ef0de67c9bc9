"""Stat tells all that is known of an object, and is no use of it: not for eviction, not for the counters."""

from dataclasses import asdict, replace

from services.master.core import messages as m
from services.master.core.messages import Result
from tests.unit.master.transcript import CONFIG, KIB, Cluster


def told(cluster: Cluster, *keys: bytes, lease: bool = False) -> m.Known:
    call = cluster.call()
    cluster.step(m.Stat(call, keys, lease))
    answer = cluster.answers[call]
    assert isinstance(answer, m.Known)
    return answer


def takes_a_put(cluster: Cluster) -> bool:
    """Whether one that waits a little finds room."""
    call = cluster.call()
    cluster.step(m.PutStart(call, call.to_bytes(16, "big"), [b"new%d" % call], [8 * KIB], 1, wait_ms=50))
    cluster.pass_time(60)
    answer = cluster.answers[call]
    assert isinstance(answer, m.PutStarted)
    return answer.results == [Result.OK]


def test_a_stat_tells_everything_that_is_known() -> None:
    cluster = Cluster(nodes=2, capacity=64 * KIB)
    call = cluster.call()
    start = m.PutStart(call, bytes(16), [b"k"], [5 * KIB], 2, [3], "", 0, "", 60_000, m.Pin.HARD)
    cluster.step(start)
    started = cluster.answers[call]
    assert isinstance(started, m.PutStarted)
    cluster.end(started)
    cluster.pass_time(1_000)
    answer = told(cluster, b"none", b"k")
    assert answer.results == [Result.MISS, Result.OK]
    assert (answer.sizes, answer.wanted, answer.pins, answer.depths) == ([0, 5 * KIB], [0, 2], [0, 2], [0, 3])
    assert answer.write_ids == [0, started.write_ids[0]]
    assert answer.ttls_ms == [0, 59_000]
    assert answer.leases_ms == [0, 0]
    assert answer.places.slice_counts == [0, 2]
    assert (answer.places.slice_lengths, answer.places.checksums) == ([4 * KIB, KIB], [1, 2])
    assert (answer.places.copy_counts, len(set(answer.places.segments)), answer.silent) == ([2, 2], 2, [])
    assert (answer.lease, answer.lease_ms) == (0, 0)


def test_a_copy_on_a_silent_node_is_marked_so() -> None:
    cluster = Cluster(nodes=2)
    cluster.put(b"k", KIB, copies=2)
    cluster.pass_time(500, silent=(1,))
    answer = told(cluster, b"k")
    assert answer.places.copy_counts == [2]
    (silent,) = answer.silent
    assert answer.places.segments[silent].node_id == "n1"


def test_what_has_expired_is_a_miss() -> None:
    cluster = Cluster(nodes=1)
    call = cluster.call()
    cluster.step(m.PutStart(call, bytes(16), [b"k"], [KIB], ttl_ms=100))
    started = cluster.answers[call]
    assert isinstance(started, m.PutStarted)
    cluster.end(started)
    assert told(cluster, b"k").results == [Result.OK]
    cluster.now += 100
    assert told(cluster, b"k").results == [Result.MISS]


def test_a_lease_keeps_what_is_read_and_tells_of_others_reads() -> None:
    cluster = Cluster(nodes=1, config=replace(CONFIG, high_watermark=1.0))
    cluster.put(b"a", 8 * KIB)
    cluster.put(b"b", 8 * KIB)
    answer = told(cluster, b"a", b"b", lease=True)
    assert (answer.leases_ms, answer.lease_ms) == ([0, 0], CONFIG.lease_ms - 1)
    assert told(cluster, b"a").leases_ms == [CONFIG.lease_ms]
    assert not takes_a_put(cluster)
    cluster.step(m.Release(cluster.call(), [answer.lease]))
    assert takes_a_put(cluster)


def test_a_stat_is_not_a_use() -> None:
    cluster = Cluster(nodes=1)
    for key in (b"a", b"b"):
        cluster.put(key, 4 * KIB)
    state = cluster.core.state
    used, counters = [obj.used for obj in state.objects.values()], asdict(state.counters)
    told(cluster, b"a", b"missing", lease=True)
    assert [obj.used for obj in state.objects.values()] == used
    assert asdict(state.counters) == counters


def test_a_status_counts_what_was_put_asked_for_found_and_lost() -> None:
    cluster = Cluster(nodes=2)
    cluster.put(b"a", KIB, copies=2)
    cluster.put(b"b", 2 * KIB)
    cluster.lookup(b"a")
    cluster.lookup(b"none")
    cluster.match([b"a", b"none", b"b"])
    cluster.pass_time(500, silent=(1,))
    call = cluster.call()
    cluster.step(m.Status(call))
    answer = cluster.answers[call]
    assert isinstance(answer, m.StatusReport)
    assert (answer.counters.put_objects, answer.counters.put_bytes) == (2, 3 * KIB)
    assert answer.asked == {"lookup": m.Asked(2, 1, KIB), "match": m.Asked(3, 1, KIB)}
    assert answer.up_ms == cluster.now
