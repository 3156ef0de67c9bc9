"""Transcripts of the core: objects with a time to live."""

from services.master.core import messages as m
from services.master.core.expiry import EXPIRIES_PER_STEP
from services.master.core.messages import Result
from tests.unit.master.transcript import CONFIG, KIB, Cluster


def put(cluster: Cluster, key: bytes, ttl_ms: int, copies: int = 1) -> None:
    call = cluster.call()
    cluster.step(m.PutStart(call, call.to_bytes(16, "big"), [key], [KIB], copies, ttl_ms=ttl_ms))
    started = cluster.answers[call]
    assert isinstance(started, m.PutStarted)
    assert started.results == [Result.OK]
    cluster.end(started)


def free(cluster: Cluster) -> int:
    return sum(segment.allocator.free_bytes for segment in cluster.core.state.segments.values())


def test_what_has_expired_is_a_miss_at_once_and_its_space_returns() -> None:
    cluster = Cluster()
    before = free(cluster)
    put(cluster, b"k", ttl_ms=300, copies=2)
    assert cluster.core.next_deadline_ms() is not None
    cluster.now += 299
    assert cluster.found(b"k")
    cluster.now += 1
    assert cluster.lookup(b"k").results == [Result.MISS]
    assert free(cluster) == before
    assert cluster.core.state.counters.expired_objects == 1
    put(cluster, b"k", ttl_ms=0)
    assert cluster.found(b"k")


def test_what_has_expired_goes_without_anybody_asking() -> None:
    cluster = Cluster()
    put(cluster, b"k", ttl_ms=300)
    cluster.pass_time(300)
    assert not cluster.core.state.objects


def test_a_lease_outlives_the_object() -> None:
    cluster = Cluster(nodes=1)
    put(cluster, b"k", ttl_ms=300)
    cluster.pass_time(250)
    cluster.lookup(b"k")
    cluster.pass_time(CONFIG.lease_ms - 50)
    segment = next(iter(cluster.core.state.segments.values()))
    assert segment.quarantined_bytes == KIB
    cluster.pass_time(50)
    assert segment.quarantined_bytes == 0


def test_what_goes_before_its_time_leaves_the_calendar() -> None:
    cluster = Cluster()
    put(cluster, b"k", ttl_ms=300)
    cluster.step(m.Remove(cluster.call(), b"d" * 16, [b"k"]))
    assert not cluster.core.state.expiring


def test_however_many_expire_at_once_a_step_stays_short_and_all_are_a_miss() -> None:
    cluster = Cluster(nodes=1, capacity=4 << 20)
    count = 2 * EXPIRIES_PER_STEP
    keys = [b"%05d" % i for i in range(count)]
    call = cluster.call()
    cluster.step(m.PutStart(call, call.to_bytes(16, "big"), keys, [256] * count, ttl_ms=300))
    started = cluster.answers[call]
    assert isinstance(started, m.PutStarted)
    cluster.end(started)
    cluster.now += 300
    call = cluster.call()
    cluster.hold = True
    cluster.step(m.Lookup(call, keys))
    found = cluster.answers[call]
    assert isinstance(found, m.Found)
    assert set(found.results) == {Result.MISS}
    assert len(cluster.core.state.objects) == count - EXPIRIES_PER_STEP
    late = [key for key in keys if key in cluster.core.state.objects]
    assert not cluster.found(late[0]) or late[0] not in cluster.core.state.objects
    assert cluster.answers[cluster.match(late[:2])] == m.Matched(0)
    cluster.step(m.Remove(900, b"d" * 16, late[-1:]))
    assert cluster.core.next_deadline_ms() is None or not cluster.core.state.objects


def test_a_new_master_knows_what_is_left_of_their_lives() -> None:
    cluster = Cluster(nodes=1)
    put(cluster, b"k", ttl_ms=300)
    (record,) = [effect for effect in cluster.sent if isinstance(effect, m.Record)]
    (held,) = record.copies
    assert held.expires_ms == cluster.now + 300
    new = Cluster(nodes=0)
    new.infos = cluster.infos
    new.attach(0, held=(held._replace(expires_ms=120, segment=1),), epoch=7)
    assert new.found(b"k")
    new.now += 119
    assert new.found(b"k")
    new.now += 1
    assert not new.found(b"k")


def test_a_copy_made_again_ends_with_the_others() -> None:
    cluster = Cluster(nodes=3)
    put(cluster, b"k", ttl_ms=5000, copies=2)
    holder = cluster.core.state.segments[cluster.core.state.objects[b"k"].slices[0].copies[0].segment].node
    assert holder.stream is not None
    stream = holder.stream
    cluster.step(m.Broken(stream))
    cluster.pass_time(3000)
    (fetch,) = [effect for effect in cluster.sent if isinstance(effect, m.Fetch)]
    assert fetch.copy.expires_ms == 5000, "with the others"


def test_impossible_lives_are_refused() -> None:
    cluster = Cluster()
    cluster.step(m.PutStart(1, bytes(16), [b"k"], [KIB], ttl_ms=CONFIG.ttl_ms_max + 1))
    answer = cluster.answers[1]
    assert isinstance(answer, m.Rejected)
    assert "ttl_ms is" in answer.reason
