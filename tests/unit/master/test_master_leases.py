"""Leases end when their reads have, and never before: not another's, not a hold's, not one of a former reign."""

from dataclasses import replace

from services.master.core import messages as m
from services.master.core.eviction import HELD_SKIPPED_MAX
from services.master.core.messages import Result
from tests.unit.master.transcript import CONFIG, KIB, Cluster

FULL = replace(CONFIG, high_watermark=1.0)


def full(config: object = FULL) -> Cluster:
    """A pool of 16 objects of 1 KiB, and no room."""
    cluster = Cluster(nodes=1, config=config)  # type: ignore[arg-type]
    for i in range(16):
        cluster.put(b"%d" % i, KIB)
    return cluster


def read(cluster: Cluster) -> int:
    """Everything is read; the number of the lease."""
    call = cluster.call()
    cluster.step(m.Lookup(call, [b"%d" % i for i in range(16)]))
    answer = cluster.answers[call]
    assert isinstance(answer, m.Found)
    assert answer.results == [Result.OK] * 16
    return answer.lease


def release(cluster: Cluster, *leases: int) -> None:
    call = cluster.call()
    cluster.step(m.Release(call, leases))
    assert cluster.answers[call] == m.Released()


def takes_a_put(cluster: Cluster) -> bool:
    """Whether a put that waits a little finds room."""
    call = cluster.call()
    cluster.step(m.PutStart(call, call.to_bytes(16, "big"), [b"new%d" % call], [KIB], 1, wait_ms=50))
    cluster.pass_time(60)
    answer = cluster.answers[call]
    assert isinstance(answer, m.PutStarted)
    return answer.results == [Result.OK]


def test_what_is_being_read_makes_no_room_until_the_read_has_ended() -> None:
    cluster = full()
    lease = read(cluster)
    assert not takes_a_put(cluster)
    release(cluster, lease)
    assert takes_a_put(cluster)


def test_a_put_that_waits_goes_on_when_the_read_ends() -> None:
    cluster = full()
    lease, call = read(cluster), cluster.call()
    cluster.step(m.PutStart(call, call.to_bytes(16, "big"), [b"new"], [KIB], 1, wait_ms=CONFIG.lease_ms // 2))
    cluster.pass_time(50)
    assert call not in cluster.answers
    release(cluster, lease)
    cluster.pass_time(50)
    assert cluster.answers[call].results == [Result.OK]  # type: ignore[union-attr]


def test_others_who_read_the_same_keep_their_lease() -> None:
    cluster = full()
    first, second = read(cluster), read(cluster)
    release(cluster, first, first, first)
    release(cluster, first)
    assert not takes_a_put(cluster)
    release(cluster, second)
    assert takes_a_put(cluster)


def test_a_lease_that_ended_by_itself_takes_no_later_one_with_it() -> None:
    cluster = full()
    first = read(cluster)
    cluster.pass_time(CONFIG.lease_ms)
    second = read(cluster)
    release(cluster, first)
    assert not takes_a_put(cluster)
    release(cluster, second)
    assert takes_a_put(cluster)


def test_leases_of_another_reign_or_none_at_all_are_nobodys() -> None:
    cluster = full()
    lease = read(cluster)
    release(cluster, lease + 1, lease + (1 << 32), 0, 12345)
    assert not takes_a_put(cluster)


def test_a_lease_that_is_not_remembered_any_more_lasts_its_time() -> None:
    cluster = full(replace(FULL, leased_max=20))
    first, second = read(cluster), read(cluster)
    release(cluster, first, second)
    assert not takes_a_put(cluster)
    cluster.pass_time(CONFIG.lease_ms)
    assert takes_a_put(cluster)


def test_a_batch_that_has_a_key_twice_is_one_lease() -> None:
    cluster = full()
    call = cluster.call()
    cluster.step(m.Lookup(call, [b"%d" % (i % 16) for i in range(40)]))
    release(cluster, cluster.answers[call].lease)  # type: ignore[union-attr]
    assert takes_a_put(cluster)


def test_what_a_match_holds_stays_for_that_time_whoever_reads_it_meanwhile() -> None:
    cluster = full()
    call = cluster.call()
    cluster.step(m.Match(call, [b"%d" % i for i in range(16)], 0, 400))
    assert cluster.answers[call] == m.Matched(16)
    release(cluster, read(cluster))
    assert not takes_a_put(cluster)
    cluster.pass_time(400)
    assert takes_a_put(cluster)


def test_a_hold_is_no_longer_than_a_lease_and_not_given_unasked() -> None:
    cluster = full()
    call = cluster.call()
    cluster.step(m.Match(call, [b"%d" % i for i in range(16)], 0, 0))
    assert takes_a_put(cluster)
    cluster = full()
    cluster.step(m.Match(call, [b"%d" % i for i in range(16)], 0, 100 * CONFIG.lease_ms))
    cluster.pass_time(CONFIG.lease_ms - 100)
    assert not takes_a_put(cluster)
    cluster.pass_time(100)
    assert takes_a_put(cluster)


def test_readers_of_a_former_reign_keep_what_they_were_promised() -> None:
    cluster = Cluster(nodes=0)
    cluster.infos = [m.SegmentInfo(16 * KIB, ways=b"0")]
    held = m.HeldCopy(b"k", 5, KIB, 1, 0, 1, 0, KIB, 1, 0)
    cluster.attach(0, held=(held,), epoch=3)
    adopted_at = cluster.now
    cluster.pass_time(100)
    release(cluster, cluster.lookup(b"k").lease)
    assert cluster.core.state.objects[b"k"].lease_until == adopted_at + CONFIG.lease_ms


def test_what_is_leased_is_not_all_there_is_to_evict() -> None:
    """The oldest objects were all handed over as soon as they were put, and are being read: others go instead."""
    objects = 8 * HELD_SKIPPED_MAX
    cluster = Cluster(nodes=1, capacity=objects * KIB // 4, config=FULL)
    for i in range(objects):
        cluster.put(b"%d" % i, KIB // 4)
        if i < objects // 2:
            cluster.lookup(b"%d" % i)
    call = cluster.call()
    cluster.step(m.PutStart(call, call.to_bytes(16, "big"), [b"new"], [KIB // 4], 1, wait_ms=CONFIG.lease_ms // 2))
    cluster.pass_time(CONFIG.lease_ms // 2)
    assert cluster.answers[call].results == [Result.OK]  # type: ignore[union-attr]
    assert all(cluster.found(b"%d" % i) for i in range(objects // 2))
