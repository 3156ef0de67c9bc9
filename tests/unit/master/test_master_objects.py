"""Transcripts of the core: each test tells one story of an object's life."""

from dataclasses import replace

from services.master.core import messages as m
from services.master.core.messages import Result
from services.master.core.tables import Config
from tests.unit.master.transcript import CONFIG, KIB, Cluster


def rejected(answer: m.Answer) -> m.Rejected:
    assert isinstance(answer, m.Rejected)
    return answer


def test_a_put_is_readable_once_its_holders_have_recorded_it() -> None:
    cluster = Cluster()
    cluster.hold = True
    started = cluster.start(b"k", 10 * KIB, copies=2)
    assert started is not None
    assert started.places.slice_lengths == [4 * KIB, 4 * KIB, 2 * KIB]
    assert started.places.copy_counts == [2, 2, 2]
    call = cluster.end(started)
    assert call not in cluster.answers
    assert not cluster.found(b"k")
    cluster.acknowledge()
    assert cluster.answers[call] == m.PutEnded([Result.OK], [2])
    found = cluster.lookup(b"k")
    assert found.sizes == [10 * KIB]
    assert found.places.checksums == [1, 2, 3]


def test_slices_of_a_large_object_are_striped_over_the_nodes() -> None:
    cluster = Cluster(nodes=4, capacity=64 * KIB)
    started = cluster.start(b"large", 32 * KIB, host="h0")
    assert started is not None
    assert sorted(started.places.copy_segments) == sorted(list(range(4)) * 2)


def test_the_callers_host_comes_first() -> None:
    cluster = Cluster(nodes=3)
    started = cluster.start(b"k", KIB, copies=2, host="h2")
    assert started is not None
    first = started.places.segments[started.places.copy_segments[0]]
    assert first.host_id == "h2"
    cluster.end(started)
    places = cluster.lookup(b"k", host="h2").places
    assert places.segments[places.copy_segments[0]].host_id == "h2"


def start_many(cluster: Cluster, keys: list[bytes], sizes: list[int], copies: int = 1) -> m.PutStarted:
    call = cluster.call()
    cluster.step(m.PutStart(call, call.to_bytes(16, "big"), keys, sizes, copies))
    answer = cluster.answers[call]
    assert isinstance(answer, m.PutStarted)
    return answer


def test_a_put_that_does_not_wait_is_refused_at_once_and_makes_room_for_the_next() -> None:
    cluster = Cluster(nodes=1, config=replace(CONFIG, high_watermark=1.0))
    for i in range(16):
        cluster.put(b"old%d" % i, KIB)
    assert start_many(cluster, [b"a", b"b"], [KIB, KIB]).results == [Result.NO_SPACE] * 2
    assert start_many(cluster, [b"a", b"b"], [KIB, KIB]).results == [Result.OK] * 2
    assert [cluster.found(b"old%d" % i) for i in range(3)] == [False, False, True]


def test_objects_of_a_batch_lie_side_by_side_as_far_as_a_slice_goes() -> None:
    cluster = Cluster(nodes=3, capacity=64 * KIB)
    keys = [b"%d" % i for i in range(6)]
    started = start_many(cluster, keys, [KIB] * 6, copies=2)  # a slice has 4 KiB
    places = started.places
    assert (started.results, places.slice_counts, places.copy_counts) == ([Result.OK] * 6, [1] * 6, [2] * 6)
    run = list(zip(places.copy_segments, places.copy_offsets, strict=True))
    first, second = run[0], run[1]
    assert first[0] != second[0]
    assert run[:8] == [(s, o + i * KIB) for i in range(4) for s, o in (first, second)]
    assert {segment for segment, _ in run[8:]} != {first[0], second[0]}, "the next run goes where there is most room"
    cluster.end(started)
    assert [cluster.found(key) for key in keys] == [True] * 6


def test_a_batch_is_placed_piece_by_piece_where_no_run_fits_or_sizes_differ() -> None:
    cluster = Cluster(nodes=1, capacity=8 * KIB)
    for i in range(8):
        cluster.put(b"old%d" % i, KIB)
    assert not cluster.found(b"old0"), "evicted: the pool is above its watermark"
    call = cluster.call()
    cluster.step(m.Remove(call, call.to_bytes(16, "big"), [b"old%d" % i for i in (2, 4, 6)]))
    started = start_many(cluster, [b"a", b"b", b"old7", b"c"], [KIB, KIB, KIB, KIB // 2])
    assert started.results == [Result.OK, Result.OK, Result.EXISTS, Result.OK]
    assert started.places.copy_offsets == [0, 2 * KIB, 4 * KIB]


def test_a_batch_finds_no_place_where_no_node_is_live() -> None:
    cluster = Cluster(nodes=1)
    cluster.step(m.Broken(1))
    assert start_many(cluster, [b"a", b"b"], [KIB, KIB]).results == [Result.NO_SPACE] * 2


def test_an_existing_key_moves_no_bytes() -> None:
    cluster = Cluster()
    cluster.put(b"k", KIB)
    again = cluster.start(b"k", KIB)
    assert again is not None
    assert (again.results, again.write_ids, again.places.slice_counts) == ([Result.EXISTS], [0], [0])


def test_of_two_writers_the_first_to_end_wins() -> None:
    cluster = Cluster()
    first, second = cluster.start(b"k", KIB), cluster.start(b"k", KIB)
    assert first is not None
    assert second is not None
    assert cluster.answers[cluster.end(second)] == m.PutEnded([Result.OK], [1])
    assert cluster.answers[cluster.end(first)] == m.PutEnded([Result.EXISTS], [0])
    reserved = sum(segment.reserved_bytes for segment in cluster.core.state.segments.values())
    assert reserved == 0


def test_a_copy_that_failed_is_reported_not_hidden() -> None:
    cluster = Cluster()
    started = cluster.start(b"k", KIB, copies=2)
    assert started is not None
    assert cluster.answers[cluster.end(started, failed=((0, 0, 1),))] == m.PutEnded([Result.OK], [1])
    segments = cluster.core.state.segments
    assert sum(s.quarantined_bytes for s in segments.values()) == KIB, "it may still land: its extent rests"
    cluster.pass_time(CONFIG.late_write_ms)
    assert sum(s.quarantined_bytes for s in segments.values()) == 0


def test_a_put_without_any_copy_is_lost_and_leaves_nothing() -> None:
    cluster = Cluster()
    started = cluster.start(b"k", KIB)
    assert started is not None
    assert cluster.answers[cluster.end(started, failed=((0, 0, 0),))] == m.PutEnded([Result.LOST], [0])
    assert not cluster.found(b"k")


def test_ending_twice_is_an_unknown_write() -> None:
    cluster = Cluster()
    started = cluster.start(b"k", KIB)
    assert started is not None
    cluster.end(started)
    assert cluster.answers[cluster.end(started)] == m.PutEnded([Result.UNKNOWN_WRITE], [0])
    assert cluster.found(b"k")


def test_a_retry_has_the_same_answer_and_no_second_effect() -> None:
    cluster = Cluster()
    request = m.PutStart(1, b"r" * 16, [b"k"], [KIB])
    cluster.step(request)
    reserved = [s.reserved_bytes for s in cluster.core.state.segments.values()]
    cluster.step(m.PutStart(2, b"r" * 16, [b"k"], [KIB]))
    assert cluster.answers[1] == cluster.answers[2]
    assert [s.reserved_bytes for s in cluster.core.state.segments.values()] == reserved


def test_retries_of_a_put_end_wait_for_the_same_nodes() -> None:
    cluster = Cluster()
    started = cluster.start(b"k", KIB)
    assert started is not None
    cluster.hold = True
    for call in (100, 101):
        cluster.step(m.PutEnd(call, b"e" * 16, started.write_ids, [1], [1]))
    assert len(cluster.held) == 1
    cluster.acknowledge()
    assert cluster.answers[100] == cluster.answers[101] == m.PutEnded([Result.OK], [1])


def test_a_write_that_never_ends_expires_and_its_space_rests() -> None:
    cluster = Cluster()
    started = cluster.start(b"k", KIB)
    assert started is not None
    cluster.pass_time(CONFIG.write_ttl_ms)
    assert cluster.core.state.counters.expired_writes == 1
    assert cluster.answers[cluster.end(started)] == m.PutEnded([Result.UNKNOWN_WRITE], [0])
    assert sum(s.quarantined_bytes for s in cluster.core.state.segments.values()) == KIB
    cluster.pass_time(CONFIG.late_write_ms)
    assert sum(s.quarantined_bytes for s in cluster.core.state.segments.values()) == 0


def test_eviction_takes_the_least_recently_used_by_bytes() -> None:
    cluster = Cluster(nodes=1)
    for i in range(12):
        cluster.put(b"k%d" % i, KIB)
    cluster.lookup(b"k0")
    cluster.pass_time(CONFIG.lease_ms + 50)
    for i in range(12, 18):
        cluster.put(b"k%d" % i, KIB)
    assert cluster.found(b"k0"), "used since"
    assert not cluster.found(b"k1")
    segment = next(iter(cluster.core.state.segments.values()))
    assert segment.live_bytes <= CONFIG.high_watermark * segment.capacity


def test_a_put_waits_for_leases_then_has_room() -> None:
    cluster = Cluster(nodes=1)
    for i in range(15):
        cluster.put(b"k%d" % i, KIB)
        cluster.lookup(b"k%d" % i)
    assert cluster.start(b"big", 4 * KIB, wait_ms=5000) is None
    call = cluster.calls
    cluster.pass_time(CONFIG.lease_ms + 100)
    answer = cluster.answers[call]
    assert isinstance(answer, m.PutStarted)
    assert answer.results == [Result.OK]


def waits_for_eviction_only(cluster: Cluster, size: int, copies: int) -> None:
    """A put of evictable space: it waits for no lease, only for the nodes' acknowledgements."""
    started = cluster.start(b"big", size, copies, wait_ms=10_000)
    if started is None:
        call = cluster.calls
        cluster.pass_time(500)
        answer = cluster.answers[call]
        assert isinstance(answer, m.PutStarted)
        started = answer
    assert started.results == [Result.OK]
    assert started.places.copy_counts == [copies] * (size // (4 * KIB))


def test_a_put_of_several_slices_has_room_made_however_small_the_free_pieces_are() -> None:
    cluster = Cluster(nodes=1, capacity=24 * KIB)
    for i in range(22):
        cluster.put(b"k%02d" % i, KIB)
    for i in range(22):
        if i not in (5, 12, 19):  # three objects stay in the way of everything larger than what lies between them
            call = cluster.call()
            cluster.step(m.Remove(call, call.to_bytes(16, "big"), [b"k%02d" % i]))
    waits_for_eviction_only(cluster, 20 * KIB, copies=1)


def test_a_put_of_several_copies_has_room_made_on_every_node_it_needs() -> None:
    cluster = Cluster(nodes=2)
    for i in range(8):
        cluster.put(b"k%d" % i, KIB, copies=2)
    waits_for_eviction_only(cluster, 12 * KIB, copies=2)


def test_room_is_made_where_it_is_short_only() -> None:
    cluster = Cluster(nodes=0)
    cluster.infos = [m.SegmentInfo(16 * KIB), m.SegmentInfo(64 * KIB)]
    for i in range(2):
        cluster.attach(i)
    for host in (b"h0", b"h1"):
        for i in range(8):
            started = cluster.start(b"%s-%d" % (host, i), KIB, host=host.decode())
            assert started is not None
            cluster.end(started)
    waits_for_eviction_only(cluster, 12 * KIB, copies=2)
    assert not all(cluster.found(b"h0-%d" % i) for i in range(8))
    assert all(cluster.found(b"h1-%d" % i) for i in range(8))


def test_a_put_without_room_fails_at_its_deadline() -> None:
    cluster = Cluster(nodes=1)
    for i in range(15):
        cluster.put(b"k%d" % i, KIB)
        cluster.lookup(b"k%d" % i)
    assert cluster.start(b"big", 4 * KIB, wait_ms=300) is None
    call = cluster.calls
    cluster.pass_time(300)
    answer = cluster.answers[call]
    assert isinstance(answer, m.PutStarted)
    assert answer.results == [Result.NO_SPACE]


def test_what_could_never_fit_is_told_at_once() -> None:
    cluster = Cluster(nodes=2)
    exact, above = cluster.start(b"all", 32 * KIB, wait_ms=5000), cluster.start(b"more", 32 * KIB + 1, wait_ms=5000)
    assert exact is not None
    assert exact.results == [Result.OK]
    assert above is not None
    assert above.results == [Result.TOO_LARGE]


def test_a_lease_keeps_bytes_where_they_are_after_a_remove() -> None:
    cluster = Cluster(nodes=1)
    cluster.put(b"k", KIB)
    cluster.lookup(b"k")
    call = cluster.call()
    cluster.step(m.Remove(call, b"d" * 16, [b"k", b"none"]))
    assert cluster.answers[call] == m.Removed([Result.OK, Result.MISS])
    segment = next(iter(cluster.core.state.segments.values()))
    assert segment.quarantined_bytes == KIB
    cluster.pass_time(CONFIG.lease_ms)
    assert segment.quarantined_bytes == 0


def test_remove_is_answered_when_the_node_has_forgotten() -> None:
    cluster = Cluster(nodes=1)
    cluster.put(b"k", KIB)
    cluster.hold = True
    call = cluster.call()
    cluster.step(m.Remove(call, b"d" * 16, [b"k"]))
    assert call not in cluster.answers
    cluster.acknowledge()
    assert call in cluster.answers


def test_match_waits_for_the_write_of_the_key_it_missed() -> None:
    cluster = Cluster()
    cluster.put(b"a", KIB)
    started = cluster.start(b"b", KIB)
    assert started is not None
    waiting = cluster.match([b"a", b"b", b"c"], wait_ms=500)
    assert waiting not in cluster.answers
    cluster.end(started)
    assert cluster.answers[waiting] == m.Matched(2)
    late = cluster.start(b"c", KIB)
    assert late is not None
    bounded = cluster.match([b"a", b"b", b"c"], wait_ms=100)
    cluster.pass_time(100)
    assert cluster.answers[bounded] == m.Matched(2)
    assert cluster.answers[cluster.match([b"x"], wait_ms=500)] == m.Matched(0), "nobody writes it: no wait"


def test_match_and_exists_do_not_prolong_life() -> None:
    cluster = Cluster(nodes=1)
    for i in range(15):
        cluster.put(b"k%d" % i, KIB)
    for _ in range(20):
        cluster.found(b"k0")
        cluster.match([b"k0"])
    cluster.put(b"new", KIB)
    cluster.put(b"newer", KIB)
    assert not cluster.found(b"k0")


def test_a_corrupt_copy_is_dropped_and_with_the_last_one_the_object() -> None:
    cluster = Cluster()
    cluster.put(b"k", KIB, copies=2)
    cluster.hold = True  # else the first is made again before the second goes
    for left in (1, 0):
        segment, offset = cluster.core.state.objects[b"k"].slices[0].copies[0]
        call = cluster.call()
        cluster.step(m.Report(call, [b"k"], [0], [segment], [offset], [m.Fault.CORRUPT]))
        assert cluster.answers[call] == m.Reported(1)
        assert cluster.found(b"k") == bool(left)


def test_bad_arguments_change_nothing() -> None:
    cluster = Cluster()
    cases: list[tuple[m.ClientCommand, str]] = [
        (m.PutStart(900, b"p" * 16, [b""], [1]), "key 0 has 0 bytes"),
        (m.PutStart(900, b"p" * 16, [b"k" * 1025], [1]), "key 0 has 1025 bytes"),
        (m.PutStart(900, b"p" * 16, [b"k"], [0]), "has 0 bytes: give 1"),
        (m.PutStart(900, b"p" * 16, [b"k"], [1, 2]), "column sizes has 2 entries"),
        (m.PutStart(900, b"p" * 16, [b"k"], [1], copies=17), "copies is 17"),
        (m.PutStart(900, b"short", [b"k"], [1]), "request_id has 5 bytes"),
        (m.PutStart(900, b"p" * 16, [b"k"] * 16_385, [1] * 16_385), "the limit is 16384"),
        (m.PutEnd(900, b"p" * 16, [1], [1], []), "column checksums has 0 entries: expected 1"),
        (m.PutEnd(900, b"p" * 16, [1, 1], [1, 1], [1, 1]), "twice"),
        (m.List(900, limit=10_001), "limit is 10001"),
    ]
    for command, reason in cases:
        before = len(cluster.core.state.writes)
        cluster.step(command)
        answer = rejected(cluster.answers.pop(900))
        assert not answer.overloaded
        assert reason in answer.reason
        assert len(cluster.core.state.writes) == before


def test_too_many_waiting_puts_are_told_to_retry() -> None:
    config = Config(slice_bytes=4 * KIB, waiting_max=1)
    cluster = Cluster(nodes=1, capacity=4 * KIB, config=config)
    started = cluster.start(b"a", 4 * KIB)
    assert started is not None
    assert cluster.start(b"b", 4 * KIB, wait_ms=1000) is None
    cluster.step(m.PutStart(900, b"o" * 16, [b"c"], [4 * KIB], wait_ms=1000))
    assert rejected(cluster.answers[900]).overloaded


def test_list_pages_in_order() -> None:
    cluster = Cluster()
    for key in (b"b2", b"a", b"b1", b"b3", b"c"):
        cluster.put(key, 256)
    cluster.step(m.List(900, prefix=b"b", limit=2))
    first = cluster.answers[900]
    assert isinstance(first, m.Listed)
    assert (first.keys, first.more) == ([b"b1", b"b2"], True)
    cluster.step(m.List(901, prefix=b"b", after=b"b2", limit=2))
    rest = cluster.answers[901]
    assert isinstance(rest, m.Listed)
    assert (rest.keys, rest.more) == ([b"b3"], False)


def test_a_put_that_waited_for_room_has_its_whole_time_to_write() -> None:
    cluster = Cluster(nodes=1)
    cluster.put(b"a", 12 * KIB)
    cluster.lookup(b"a")
    assert cluster.start(b"k", 8 * KIB, wait_ms=5000) is None, "all is leased"
    cluster.pass_time(CONFIG.lease_ms)
    answer = cluster.answers[cluster.calls]
    assert isinstance(answer, m.PutStarted)
    assert answer.results == [Result.OK]
    assert answer.write_ttl_ms == CONFIG.lease_ms + CONFIG.write_ttl_ms, "the client counts from when it asked"
    cluster.pass_time(CONFIG.write_ttl_ms - 50)
    assert cluster.answers[cluster.end(answer)] == m.PutEnded([Result.OK], [1])
