"""A put that replaces: a key gets new bytes, and whoever looks finds the old or the new."""

from services.master.core import messages as m
from services.master.core.messages import HeldCopy, Pin, Result
from tests.unit.master.transcript import CONFIG, KIB, Cluster


def start(cluster: Cluster, key: bytes, size: int = KIB, copies: int = 1, **terms: object) -> m.PutStarted:
    call = cluster.call()
    command = m.PutStart(call, call.to_bytes(16, "big"), [key], [size], copies, replace=True, **terms)  # type: ignore[arg-type]
    cluster.step(command)
    answer = cluster.answers[call]
    assert isinstance(answer, m.PutStarted)
    assert answer.results == [Result.OK]
    return answer


def ended(cluster: Cluster, call: int) -> m.PutEnded:
    answer = cluster.answers[call]
    assert isinstance(answer, m.PutEnded)
    return answer


def held(cluster: Cluster, node: int) -> list[HeldCopy]:
    """Everything the node was ever told to hold, by this master."""
    records = [each for each in cluster.sent if isinstance(each, m.Record) and each.stream == node + 1]
    return [copy for record in records for copy in record.copies]


def restarted(cluster: Cluster, *inventories: list[HeldCopy]) -> Cluster:
    """The next master, to which each node says what it holds."""
    successor = Cluster(nodes=0)
    successor.infos = cluster.infos
    for number, copies in enumerate(inventories):
        hello = m.Hello(number + 1, f"n{number}", 1, 8, f"h{number}", [cluster.infos[number]])
        (welcome,) = [effect for effect in successor.step(hello) if isinstance(effect, m.Welcome)]
        mine = [copy._replace(segment=welcome.segments[0]) for copy in copies]
        successor.step(m.Inventory(number + 1, mine))
        successor.step(m.InventoryEnd(number + 1))
    return successor


def size_of(cluster: Cluster, key: bytes) -> int:
    return cluster.lookup(key).sizes[0]


def test_the_old_is_found_until_the_new_is_recorded_then_the_new() -> None:
    cluster = Cluster()
    cluster.put(b"k", KIB)
    started = start(cluster, b"k", 2 * KIB)
    assert size_of(cluster, b"k") == KIB
    cluster.hold = True
    call = cluster.end(started)
    assert size_of(cluster, b"k") == KIB, "its holders have not recorded it"
    cluster.hold = False
    cluster.acknowledge()
    assert ended(cluster, call) == m.PutEnded([Result.OK], [1])
    assert size_of(cluster, b"k") == 2 * KIB
    assert cluster.core.state.object_bytes == 2 * KIB


def test_a_key_that_is_not_there_is_put() -> None:
    cluster = Cluster()
    assert ended(cluster, cluster.end(start(cluster, b"k"))) == m.PutEnded([Result.OK], [1])
    assert cluster.found(b"k")


def test_the_answer_waits_until_the_old_is_forgotten_so_that_no_restart_brings_it_back() -> None:
    cluster = Cluster()
    cluster.put(b"k", KIB)
    started = start(cluster, b"k", 2 * KIB)
    cluster.hold = True
    call = cluster.end(started)
    records, cluster.held = cluster.held, []
    for record in records:
        cluster.step(m.Ack(record.stream, 7, [record.command_id]))
    assert size_of(cluster, b"k") == 2 * KIB
    assert call not in cluster.answers
    assert [type(effect) for effect in cluster.held] == [m.Forget]
    cluster.acknowledge()
    assert ended(cluster, call) == m.PutEnded([Result.OK], [1])


def test_nobody_waits_for_a_node_that_is_silent() -> None:
    cluster = Cluster()
    started = cluster.start(b"k", KIB, host="h0")
    assert started is not None
    cluster.end(started)
    replacing = start(cluster, b"k", 2 * KIB, host_id="h1")
    cluster.hold = True
    call = cluster.end(replacing)
    (record,) = cluster.held
    cluster.step(m.Ack(record.stream, 7, [record.command_id]))
    assert call not in cluster.answers
    cluster.step(m.Broken(1))
    assert ended(cluster, call) == m.PutEnded([Result.OK], [1])


def test_a_lease_on_the_old_keeps_its_extents() -> None:
    cluster = Cluster(nodes=1)
    cluster.put(b"k", KIB)
    leased = cluster.lookup(b"k")
    place = leased.places.copy_offsets[0]
    cluster.end(start(cluster, b"k"))
    segment = next(iter(cluster.core.state.segments.values()))
    assert list(segment.quarantine) == [place]
    cluster.pass_time(CONFIG.lease_ms - 100)
    assert list(segment.quarantine) == [place]
    cluster.pass_time(200)
    assert not segment.quarantine


def test_what_fails_or_expires_or_is_aborted_leaves_the_old() -> None:
    cluster = Cluster()
    cluster.put(b"k", KIB)
    nowhere = start(cluster, b"k", 2 * KIB)
    assert ended(cluster, cluster.end(nowhere, failed=((0, 0, 0),))) == m.PutEnded([Result.LOST], [0])
    assert size_of(cluster, b"k") == KIB
    aborted, call = start(cluster, b"k", 2 * KIB), cluster.call()
    cluster.step(m.PutAbort(call, call.to_bytes(16, "big"), aborted.write_ids))
    assert size_of(cluster, b"k") == KIB
    expired = start(cluster, b"k", 2 * KIB)
    cluster.pass_time(CONFIG.write_ttl_ms)
    assert ended(cluster, cluster.end(expired)) == m.PutEnded([Result.UNKNOWN_WRITE], [0])
    assert size_of(cluster, b"k") == KIB


def test_of_two_at_once_the_last_to_end_wins() -> None:
    cluster = Cluster()
    first, second = start(cluster, b"k", KIB), start(cluster, b"k", 2 * KIB)
    assert ended(cluster, cluster.end(second)) == m.PutEnded([Result.OK], [1])
    assert ended(cluster, cluster.end(first)) == m.PutEnded([Result.OK], [1])
    assert size_of(cluster, b"k") == KIB


def test_one_that_is_recorded_after_a_later_one_is_told_so() -> None:
    cluster = Cluster()
    first, second = start(cluster, b"k", KIB), start(cluster, b"k", 2 * KIB)
    cluster.hold = True
    calls = [cluster.end(first), cluster.end(second)]
    earlier, later = cluster.held
    cluster.held = []
    for record in (later, earlier):
        cluster.step(m.Ack(record.stream, 7, [record.command_id]))
    cluster.acknowledge()
    assert [ended(cluster, call) for call in calls] == [
        m.PutEnded([Result.EXISTS], [0]),
        m.PutEnded([Result.OK], [1]),
    ]
    assert size_of(cluster, b"k") == 2 * KIB


def test_an_ordinary_put_that_began_before_gives_way() -> None:
    cluster = Cluster()
    ordinary = cluster.start(b"k", KIB)
    assert ordinary is not None
    cluster.end(start(cluster, b"k", 2 * KIB))
    assert ended(cluster, cluster.end(ordinary)) == m.PutEnded([Result.EXISTS], [0])
    assert size_of(cluster, b"k") == 2 * KIB


def test_one_that_began_before_gives_way_even_where_the_new_has_gone_since() -> None:
    """Else both might be on nodes, and after a restart the one that went would be found."""
    cluster = Cluster()
    ordinary = cluster.start(b"k", KIB)
    assert ordinary is not None
    cluster.end(start(cluster, b"k", 2 * KIB))
    cluster.core.room.evict(cluster.core.state.objects[b"k"])
    assert ended(cluster, cluster.end(ordinary)) == m.PutEnded([Result.LOST], [0])
    cluster.put(b"k", KIB)
    assert size_of(cluster, b"k") == KIB


def test_pin_life_and_copies_are_those_of_the_new() -> None:
    cluster = Cluster()
    cluster.end(start(cluster, b"k", copies=2, pin=Pin.HARD))
    cluster.end(start(cluster, b"k", copies=1, ttl_ms=500))
    obj = cluster.core.state.objects[b"k"]
    assert (obj.pin, obj.wanted, obj.expires_at) == (Pin.NONE, 1, cluster.now + 500)
    assert not any(segment.pinned_bytes for segment in cluster.core.state.segments.values())
    cluster.end(start(cluster, b"k", pin=Pin.SOFT))
    obj = cluster.core.state.objects[b"k"]
    assert (obj.pin, obj.expires_at) == (Pin.SOFT, 0)
    cluster.pass_time(600)
    assert cluster.found(b"k")


def test_a_retry_of_its_end_has_the_same_answer_and_no_second_effect() -> None:
    cluster = Cluster()
    started = start(cluster, b"k")
    for call in (900, 901):
        cluster.step(m.PutEnd(call, b"e" * 16, started.write_ids, [1], [1]))
    assert cluster.answers[900] == cluster.answers[901] == m.PutEnded([Result.OK], [1])
    assert cluster.core.state.counters.put_objects == 1
    assert ended(cluster, cluster.end(started)) == m.PutEnded([Result.UNKNOWN_WRITE], [0])


def test_a_match_finds_one_or_the_other_and_does_not_wait() -> None:
    cluster = Cluster()
    cluster.put(b"k", KIB)
    started = start(cluster, b"k", 2 * KIB)
    call = cluster.match([b"k"], wait_ms=1000)
    assert cluster.answers[call] == m.Matched(1)
    cluster.end(started)
    assert cluster.answers[cluster.match([b"k"])] == m.Matched(1)


def test_after_a_restart_the_new_wins_whichever_is_claimed_first_and_the_old_is_forgotten() -> None:
    cluster = Cluster()
    cluster.hold = True  # the old is never forgotten
    ordinary = cluster.start(b"k", KIB, host="h0")
    assert ordinary is not None
    cluster.end(ordinary)
    cluster.acknowledge()
    cluster.end(start(cluster, b"k", 2 * KIB, host_id="h1"))
    cluster.acknowledge()
    assert [[copy.object_size for copy in held(cluster, node)] for node in (0, 1)] == [[KIB], [2 * KIB]]
    for order in ((0, 1), (1, 0)):
        inventories = [held(cluster, node) for node in order]
        successor = restarted(cluster, *inventories)
        assert size_of(successor, b"k") == 2 * KIB
        (forgotten,) = [effect for effect in successor.sent if isinstance(effect, m.Forget)]
        assert forgotten.stream == order.index(0) + 1
        assert [write_id for _, _, write_id in forgotten.extents] == ordinary.write_ids


def test_after_a_restart_what_was_not_recorded_whole_leaves_the_old() -> None:
    cluster = Cluster()
    cluster.put(b"k", KIB)
    old = held(cluster, 0)
    cluster.hold = True
    cluster.end(start(cluster, b"k", 6 * KIB))
    first = [copy for node in (0, 1) for copy in held(cluster, node) if copy.object_size == 6 * KIB][:1]
    for inventory in ([*old, *first], [*first, *old]):
        successor = restarted(cluster, inventory)
        assert size_of(successor, b"k") == KIB
        successor.pass_time(CONFIG.partial_ms + 100)
        assert size_of(successor, b"k") == KIB
        assert not successor.core.state.partial


def test_the_slices_of_old_and_new_may_come_in_any_order() -> None:
    cluster = Cluster(capacity=64 * KIB)
    cluster.put(b"k", 6 * KIB)
    cluster.hold = True
    cluster.end(start(cluster, b"k", 7 * KIB))
    everything = [copy for node in (0, 1) for copy in held(cluster, node)]
    old = [copy for copy in everything if copy.object_size == 6 * KIB]
    new = [copy for copy in everything if copy.object_size == 7 * KIB]
    assert len(old) == len(new) == 2
    offsets = range(0, 100 * 4 * KIB, 4 * KIB)
    for order in ([old[0], new[0], old[1], new[1]], [new[0], old[0], new[1], old[1]], [*old, *new], [*new, *old]):
        placed = [copy._replace(offset=offset) for copy, offset in zip(order, offsets, strict=False)]
        assert size_of(restarted(cluster, placed), b"k") == 7 * KIB


def test_a_node_that_was_away_meanwhile_does_not_bring_the_old_back() -> None:
    cluster = Cluster()
    ordinary = cluster.start(b"k", KIB, host="h0")
    assert ordinary is not None
    cluster.end(ordinary)
    before = held(cluster, 0)
    cluster.step(m.Broken(1))
    cluster.pass_time(CONFIG.lost_ms + 500, silent=(0,))
    cluster.end(start(cluster, b"k", 2 * KIB))
    cluster.core.room.evict(cluster.core.state.objects[b"k"])
    effects = cluster.step(m.Hello(50, "n0", 1, 7, "h0", [cluster.infos[0]]))
    (welcome,) = [effect for effect in effects if isinstance(effect, m.Welcome)]
    cluster.step(m.Inventory(50, [copy._replace(segment=welcome.segments[0]) for copy in before]))
    cluster.step(m.InventoryEnd(50))
    assert not cluster.found(b"k")


def test_an_old_put_never_goes_before_a_newer_one_that_cannot_be_read() -> None:
    cluster = Cluster()
    ordinary = cluster.start(b"k", KIB, host="h0")
    assert ordinary is not None
    cluster.end(start(cluster, b"k", 2 * KIB, host_id="h1"))
    cluster.step(m.Broken(2))
    assert not cluster.found(b"k")
    assert ended(cluster, cluster.end(ordinary)) == m.PutEnded([Result.LOST], [0])
    cluster.end(start(cluster, b"k", 3 * KIB))
    assert size_of(cluster, b"k") == 3 * KIB
