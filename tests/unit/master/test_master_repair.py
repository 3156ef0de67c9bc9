"""Transcripts of the core: each test tells one story of copies that are made again."""

from dataclasses import replace

from services.master.core import messages as m
from services.master.core.messages import Result
from services.master.core.repair import REVIEWS_PER_STEP
from services.master.core.room import Prospects
from services.master.core.tables import Config
from tests.unit.master.transcript import CONFIG, KIB, Cluster


def node_of(cluster: Cluster, segment: int) -> str:
    return cluster.core.state.segments[segment].node.node_id


def holders(cluster: Cluster, key: bytes, number: int = 0) -> list[str]:
    return sorted(node_of(cluster, copy.segment) for copy in cluster.core.state.objects[key].slices[number].copies)


def start(cluster: Cluster, key: bytes = b"k", size: int = KIB) -> m.PutStarted:
    started = cluster.start(key, size, copies=2)
    assert started is not None
    return started


def test_a_put_whose_copy_failed_is_answered_when_another_node_has_one() -> None:
    cluster = Cluster(nodes=3)
    started = start(cluster, size=6 * KIB)
    failed = started.places.segments[started.places.copy_segments[1]].node_id
    cluster.hold = True
    call = cluster.end(started, failed=((0, 0, 1),), wait_ms=1000)
    records = [effect for effect in cluster.held if isinstance(effect, m.Record)]
    for record in records:
        cluster.held.remove(record)
        cluster.step(m.Ack(record.stream, 7, [record.command_id]))
    assert cluster.found(b"k"), "what there is can be read at once"
    assert call not in cluster.answers
    (fetch,) = cluster.held
    assert isinstance(fetch, m.Fetch)
    assert node_of(cluster, fetch.copy.segment) != failed, "nothing is made on a node that was not reached"
    cluster.acknowledge()
    assert cluster.answers[call] == m.PutEnded([Result.OK], [2])
    assert failed not in holders(cluster, b"k", 0)


def test_the_answer_waits_for_the_slowest_of_a_batch_and_no_longer_than_it_may() -> None:
    cluster = Cluster(nodes=3)
    started = start(cluster)
    cluster.step(m.Heartbeat(1))
    cluster.hold = True
    call = cluster.end(started, failed=((0, 0, 1),), wait_ms=300)
    while any(isinstance(effect, m.Record) for effect in cluster.held):
        record = next(effect for effect in cluster.held if isinstance(effect, m.Record))
        cluster.held.remove(record)
        cluster.step(m.Ack(record.stream, 7, [record.command_id]))
    cluster.pass_time(250)
    assert call not in cluster.answers
    cluster.pass_time(50)
    assert cluster.answers[call] == m.PutEnded([Result.OK], [1])
    cluster.hold = False
    cluster.acknowledge()
    assert len(holders(cluster, b"k")) == 2, "it is repaired all the same"


def test_the_answer_does_not_wait_where_there_is_no_other_node() -> None:
    cluster = Cluster(nodes=2)
    started = start(cluster)
    call = cluster.end(started, failed=((0, 0, 1),), wait_ms=60_000)
    assert call not in cluster.answers, "the node that failed may say a word yet"
    cluster.pass_time(50, silent=(0,))
    cluster.pass_time(50)
    assert cluster.answers[call] == m.PutEnded([Result.OK], [2])

    cluster = Cluster(nodes=2, config=replace(CONFIG, probe_ms=100))
    started = start(cluster)
    dead = int(started.places.segments[started.places.copy_segments[1]].node_id[1:])
    call = cluster.end(started, failed=((0, 0, 1),), wait_ms=60_000)
    cluster.pass_time(100, silent=(dead,))
    assert cluster.answers[call] == m.PutEnded([Result.OK], [1])


def test_a_holder_lost_before_it_recorded_is_replaced_in_the_same_put() -> None:
    cluster = Cluster(nodes=3)
    started = start(cluster)
    cluster.hold = True
    call = cluster.end(started, wait_ms=1000)
    lost = cluster.held[0].stream
    cluster.held = [effect for effect in cluster.held if effect.stream != lost]
    cluster.step(m.Broken(lost))
    cluster.hold = False
    cluster.acknowledge()
    assert cluster.answers[call] == m.PutEnded([Result.OK], [2])


def test_a_put_whose_object_is_removed_meanwhile_is_answered() -> None:
    cluster = Cluster(nodes=3)
    started = start(cluster)
    cluster.hold = True
    call = cluster.end(started, failed=((0, 0, 1),), wait_ms=1000)
    record = cluster.held.pop(0)
    cluster.step(m.Ack(record.stream, 7, [record.command_id]))
    cluster.step(m.Remove(cluster.call(), b"d" * 16, [b"k"]))
    cluster.hold = False
    cluster.acknowledge()
    assert cluster.answers[call] == m.PutEnded([Result.OK], [1])
    assert not cluster.found(b"k")


def test_what_a_put_waits_for_is_repaired_before_the_rest() -> None:
    config = replace(CONFIG, repair_after_ms=0, repair_bytes_per_s=4 * KIB, silence_ms=60_000, lost_ms=60_000)
    cluster = Cluster(nodes=3, config=config, capacity=32 * KIB)
    for i in range(6):
        cluster.put(b"old%d" % i, KIB, copies=2)
    started = start(cluster, b"new")
    lost = started.places.segments[started.places.copy_segments[1]].node_id
    cluster.step(m.Broken(int(lost[1:]) + 1))
    cluster.sent.clear()
    cluster.pass_time(50)  # the budget holds one object or so; the others wait
    call = cluster.end(started, wait_ms=10_000)
    before = sum(isinstance(effect, m.Fetch) for effect in cluster.sent)
    cluster.pass_time(2000)
    assert cluster.answers[call] == m.PutEnded([Result.OK], [2])
    fetched = [effect.copy.key for effect in cluster.sent if isinstance(effect, m.Fetch)]
    assert fetched.index(b"new") == before
    assert before < len(fetched) - 1, fetched


def test_a_source_that_fails_is_probed_and_the_next_one_taken() -> None:
    cluster = Cluster(nodes=4, config=replace(CONFIG, repair_after_ms=50, lost_ms=60_000))
    started = cluster.start(b"k", KIB, copies=3)
    assert started is not None
    cluster.end(started)
    gone, *_ = holders(cluster, b"k")
    cluster.hold = True
    cluster.step(m.Broken(int(gone[1:]) + 1))
    cluster.pass_time(100, silent=(int(gone[1:]),))
    (first,) = [effect for effect in cluster.held if isinstance(effect, m.Fetch)]
    cluster.held.clear()
    cluster.step(m.Ack(first.stream, 7, [], [first.command_id]))
    source = cluster.core.state.nodes[first.source.node_id]
    assert source.probed_at is not None
    cluster.pass_time(600, silent=(int(gone[1:]), int(source.node_id[1:])))
    (second,) = [effect for effect in cluster.held if isinstance(effect, m.Fetch)]
    assert second.source != first.source


def test_what_a_repair_reads_is_not_evicted_for_its_space_would_not_come_back() -> None:
    cluster = Cluster(nodes=3, capacity=4 * KIB, config=replace(CONFIG, high_watermark=1.0, repair_after_ms=50))
    cluster.put(b"k", 4 * KIB, copies=2)
    gone, source = holders(cluster, b"k")
    cluster.hold = True
    cluster.step(m.Broken(int(gone[1:]) + 1))
    cluster.pass_time(50, silent=(int(gone[1:]),))
    (fetch,) = [effect for effect in cluster.held if isinstance(effect, m.Fetch)]
    assert fetch.source.node_id == source
    assert cluster.start(b"new", 4 * KIB, copies=2, wait_ms=1000) is None
    assert cluster.found(b"k")
    waiting = cluster.calls - 1
    cluster.hold = False
    cluster.acknowledge()
    cluster.pass_time(50, silent=(int(gone[1:]),))
    started = cluster.answers[waiting]
    assert isinstance(started, m.PutStarted)
    assert started.places.copy_counts == [2], "both come free at once, as the repair is over"


def test_what_finds_no_node_costs_a_bounded_look_now_and_then() -> None:
    cluster = Cluster(
        nodes=2, capacity=4 << 20, config=replace(CONFIG, repair_after_ms=50, silence_ms=60_000, lost_ms=60_000)
    )
    count = 2 * REVIEWS_PER_STEP
    call = cluster.call()
    keys = [b"%d" % i for i in range(count)]
    cluster.step(m.PutStart(call, call.to_bytes(16, "big"), keys, [256] * count, 2))
    started = cluster.answers[call]
    assert isinstance(started, m.PutStarted)
    cluster.end(started)
    cluster.step(m.Broken(2))
    calls = 0
    place_copy = cluster.core.placing.place_copy

    def counted(*args: object) -> object:
        nonlocal calls
        calls += 1
        return place_copy(*args)  # type: ignore[arg-type]

    cluster.core.placing.place_copy = counted  # type: ignore[method-assign,assignment]
    for _ in range(20):
        cluster.now += 50
        before = calls
        cluster.step(m.Tick())
        assert calls - before <= REVIEWS_PER_STEP
    assert cluster.core.repair.pending == count
    assert calls <= count + 2 * REVIEWS_PER_STEP, "each once, then some of them every half a second"


FULL = replace(CONFIG, high_watermark=0.5, repair_after_ms=100, lost_ms=1000)


def full(config: Config = FULL) -> tuple[Cluster, list[bytes]]:
    """Three nodes at their watermark: twelve objects of two copies, the last one used last."""
    cluster = Cluster(nodes=3, config=config)
    keys = [b"k%02d" % i for i in range(12)]
    for key in keys:
        cluster.put(key, KIB, copies=2)
    assert [len(segment.residents) for segment in cluster.core.state.segments.values()] == [8, 8, 8]
    return cluster, keys


def copy_counts(cluster: Cluster) -> dict[bytes, int]:
    objects = cluster.core.state.objects
    return {key: len(objects[key].slices[0].copies) for key in sorted(objects)}


def test_in_a_full_cluster_what_was_used_last_is_back_at_two_copies_and_the_rest_goes() -> None:
    cluster, keys = full()
    cluster.step(m.Broken(3))
    cluster.pass_time(3000, silent=(2,))
    assert copy_counts(cluster) == dict.fromkeys(keys[4:], 2)
    counters = cluster.core.state.counters
    assert (counters.displaced_objects, counters.evicted_objects) == (4, 4)
    sent = len(cluster.sent)
    cluster.pass_time(5000)
    assert not any(isinstance(effect, m.Fetch | m.Forget) for effect in cluster.sent[sent:]), "it comes to an end"


def test_nothing_is_evicted_for_copies_that_may_come_back() -> None:
    cluster, keys = full()
    cluster.step(m.Broken(3))
    cluster.pass_time(900, silent=(2,))
    assert list(copy_counts(cluster)) == keys
    assert not any(isinstance(effect, m.Fetch) for effect in cluster.sent)


def test_nothing_is_evicted_for_repairs_while_a_node_attaches() -> None:
    cluster, keys = full()
    segments = [m.SegmentInfo(16 * KIB, ways=b"another")]
    cluster.step(m.Hello(13, "n2", 2, 0, "h2", segments, "", False))
    cluster.pass_time(100)
    cluster.step(m.InventoryEnd(13))
    cluster.pass_time(1000)
    assert copy_counts(cluster) == dict.fromkeys(keys, 2)


def test_what_would_go_first_displaces_nothing() -> None:
    cluster = Cluster(nodes=3, config=FULL)
    cluster.put(b"old", KIB, copies=2)
    for i in range(22):  # every node has eight
        cluster.put(b"k%d" % i, KIB)
    gone, left = holders(cluster, b"old")
    cluster.step(m.Broken(int(gone[1:]) + 1))
    cluster.pass_time(3000, silent=(int(gone[1:]),))
    assert holders(cluster, b"old") == [left]
    assert cluster.core.state.counters.evicted_objects == 0
    for i in range(22):
        cluster.step(m.Remove(cluster.call(), b"%16d" % i, [b"k%d" % i]))
    cluster.pass_time(1000, silent=(int(gone[1:]),))
    assert len(holders(cluster, b"old")) == 2, "room has come"


def test_no_object_goes_for_a_copy_of_itself() -> None:
    cluster = Cluster(nodes=3, capacity=8 * KIB, config=replace(FULL, high_watermark=1.0))
    cluster.put(b"k", 8 * KIB, copies=1)  # a slice on each of two nodes
    obj, room = cluster.core.state.objects[b"k"], cluster.core.room
    (first,), (second,) = (part.copies for part in obj.slices)
    for number in range(4):
        cluster.put(b"full%d" % number, 4 * KIB)
    home = cluster.core.state.segments[first.segment]
    home.residents.discard(obj)
    home.residents.add(obj, 3)  # worth more than where its other slice is
    cluster.core.state.traffic.came_back(3, 100)
    other = cluster.core.state.segments[second.segment]
    assert other.residents.least() == other.residents.worth(obj)
    least = {second.segment: other.residents.worth(obj)}
    room.displaceable = 8
    room.displace(obj, obj.slices[0], Prospects(0, least), lambda _: True)
    assert cluster.found(b"k")
    assert cluster.core.state.counters.displaced_objects == 1, "what lay beside it has gone"


def test_where_many_small_ones_go_for_a_large_one_they_go_a_few_a_step() -> None:
    config = replace(FULL, evictions_per_step_max=4, slice_bytes=16 * KIB)
    cluster = Cluster(nodes=3, capacity=64 * KIB, config=config)
    cluster.put(b"large", 8 * KIB, copies=2)
    for i in range(160):
        cluster.put(b"small%03d" % i, 256, copies=2)
    cluster.lookup(b"large")
    gone = holders(cluster, b"large")[0]
    cluster.step(m.Broken(int(gone[1:]) + 1))
    cluster.pass_time(900, silent=(int(gone[1:]),))
    step, counters, went = cluster.core.step, cluster.core.state.counters, []

    def counted(now: int, command: m.Command) -> list[m.Effect]:
        before = counters.evicted_objects
        effects = step(now, command)
        went.append(counters.evicted_objects - before)
        return effects

    cluster.core.step = counted  # type: ignore[method-assign]
    end = cluster.now + 2000
    while len(cluster.core.state.nodes) == 3 or len(holders(cluster, b"large")) < 2:
        cluster.now += 10
        assert cluster.now < end
        for command in [m.Tick(), *map(m.Heartbeat, cluster.core.state.streams)]:
            cluster.step(command)
    assert max(went) == 4
