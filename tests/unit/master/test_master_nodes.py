"""Transcripts of the core: each test tells one story of a node's life, or of a master's."""

from dataclasses import replace

from services.master.core import messages as m
from services.master.core.master import Master
from services.master.core.messages import Result
from tests.unit.master.transcript import CONFIG, KIB, Cluster


def test_a_broken_stream_hides_a_nodes_copies_at_once_and_its_return_shows_them() -> None:
    cluster = Cluster(nodes=1)
    cluster.put(b"k", KIB)
    record = next(effect for effect in cluster.sent if isinstance(effect, m.Record))
    cluster.step(m.Broken(1))
    assert not cluster.found(b"k")
    assert cluster.lookup(b"k").results == [Result.MISS]
    cluster.attach(0, stream=11, held=tuple(record.copies), epoch=7)
    assert cluster.found(b"k")


def test_of_two_copies_only_the_one_on_a_live_node_is_offered() -> None:
    cluster = Cluster(nodes=2)
    cluster.put(b"k", KIB, copies=2)
    assert len(cluster.lookup(b"k").places.segments) == 2
    cluster.step(m.Broken(1))
    (left,) = cluster.lookup(b"k").places.segments
    assert cluster.core.state.segments[left.number].live


def test_a_silent_node_is_suspect_until_it_is_heard() -> None:
    cluster = Cluster(nodes=2)
    cluster.put(b"k", KIB, copies=1)
    holder = next(iter(cluster.core.state.objects.values())).slices[0].copies[0].segment
    node = int(cluster.core.state.segments[holder].node.node_id[1:])
    cluster.pass_time(CONFIG.silence_ms + 600, silent=(node,))
    assert not cluster.found(b"k")
    cluster.pass_time(50)
    assert cluster.found(b"k")


def test_a_put_does_not_wait_for_a_node_that_falls_silent() -> None:
    cluster = Cluster(nodes=2)
    started = cluster.start(b"k", KIB, copies=2)
    assert started is not None
    cluster.hold = True
    call = cluster.end(started)
    record = next(effect for effect in cluster.held if isinstance(effect, m.Record) and effect.stream == 1)
    cluster.step(m.Ack(1, 7, [record.command_id]))
    cluster.step(m.Broken(2))
    assert cluster.answers[call] == m.PutEnded([Result.OK], [1])


def test_a_lost_nodes_copies_are_given_up() -> None:
    cluster = Cluster(nodes=2)
    cluster.put(b"one", KIB)
    cluster.put(b"two", KIB, copies=2)
    lone = next(iter(cluster.core.state.objects[b"one"].slices[0].copies)).segment
    node = int(cluster.core.state.segments[lone].node.node_id[1:])
    cluster.step(m.Broken(node + 1))
    cluster.pass_time(CONFIG.lost_ms + 1000)
    assert b"one" not in cluster.core.state.objects
    assert cluster.found(b"two")
    assert len(cluster.core.state.nodes) == 1


def test_a_stall_of_the_master_is_nobodys_silence() -> None:
    cluster = Cluster(nodes=2)
    cluster.put(b"k", KIB)
    cluster.now += 60_000
    cluster.step(m.Tick())
    assert cluster.found(b"k")


def test_a_new_master_learns_everything_from_the_nodes() -> None:
    old = Cluster(nodes=2)
    old.put(b"k", 10 * KIB, copies=2)
    old.put(b"l", 3 * KIB)
    held: dict[int, list[m.HeldCopy]] = {0: [], 1: []}
    for effect in old.sent:
        if isinstance(effect, m.Record):
            held[effect.stream - 1] += effect.copies
    new = Cluster(nodes=0)
    new.infos = old.infos
    for i, copies in held.items():
        segment = i * 2 + 1
        new.step(m.Hello(i + 1, f"n{i}", 1, 7, f"h{i}", [new.infos[i]]))
        segment = new.core.state.nodes[f"n{i}"].segments[0].number
        moved = [
            m.HeldCopy(
                c.key,
                c.write_id,
                c.object_size,
                c.slice_count,
                c.slice_index,
                segment,
                c.offset,
                c.length,
                c.checksum,
                0,
            )
            for c in copies
        ]
        new.step(m.Inventory(i + 1, moved))
        new.step(m.InventoryEnd(i + 1))
    assert new.found(b"k")
    assert new.found(b"l")
    assert new.lookup(b"k").places.checksums == [1, 2, 3]
    free = sum(segment.allocator.free_bytes for segment in new.core.state.segments.values())
    assert free == 0, "writes of the old master's time may still land in what looks free"
    new.pass_time(CONFIG.write_ttl_ms + CONFIG.late_write_ms)
    new.put(b"n", KIB)


def test_claims_that_overlap_are_dropped_and_forgotten() -> None:
    def claim(key: bytes, write_id: int, offset: int) -> m.HeldCopy:
        return m.HeldCopy(key, write_id, KIB, 1, 0, 1, offset, KIB, 9, 0)

    cluster = Cluster(nodes=0)
    cluster.infos = [m.SegmentInfo(16 * KIB)]
    cluster.attach(0, held=(claim(b"a", 5, 0), claim(b"b", 6, 512), claim(b"c", 7, 15 * KIB + 512)))
    assert cluster.found(b"a")
    assert not cluster.found(b"b")
    assert not cluster.found(b"c")
    assert cluster.core.state.counters.dropped_claims == 2
    forgotten = [extent for effect in cluster.sent if isinstance(effect, m.Forget) for extent in effect.extents]
    assert (1, 512, 6) in forgotten


def test_an_older_incarnation_is_refused() -> None:
    cluster = Cluster(nodes=1)
    cluster.step(m.Hello(5, "n0", 0, 0, "h0", cluster.infos))
    assert any(isinstance(effect, m.Close) and effect.stream == 5 for effect in cluster.sent)
    cluster.put(b"k", KIB)


def test_a_master_whose_clock_was_set_back_is_later_than_the_epochs_it_meets() -> None:
    cluster = Cluster(nodes=0)
    cluster.infos = [m.SegmentInfo(16 * KIB)]
    cluster.attach(0, epoch=1000)
    assert cluster.core.state.epoch == 1001


def test_a_leaving_node_is_let_go() -> None:
    cluster = Cluster(nodes=2)
    cluster.put(b"k", KIB, copies=2)
    cluster.step(m.Leave(1))
    assert any(isinstance(effect, m.Farewell) for effect in cluster.sent)
    assert cluster.found(b"k")
    assert list(cluster.core.state.nodes) == ["n1"]


def unreachable(cluster: Cluster, key: bytes) -> None:
    """A client says that it could not reach the first copy of a key."""
    call = cluster.call()
    segment, offset = cluster.core.state.objects[key].slices[0].copies[0]
    cluster.step(m.Report(call, [key], [0], [segment], [offset], [m.Fault.UNREACHABLE]))


def pings(cluster: Cluster) -> int:
    return sum(isinstance(effect, m.Ping) for effect in cluster.sent)


def test_a_node_that_a_client_cannot_reach_is_probed_and_suspect_if_it_does_not_answer() -> None:
    cluster = Cluster(nodes=1, config=replace(CONFIG, probe_ms=100))
    cluster.put(b"k", KIB)
    for _ in range(3):
        unreachable(cluster, b"k")
    assert pings(cluster) == 1, "one probe at a time"
    cluster.pass_time(50, silent=(0,))
    assert cluster.found(b"k")
    cluster.pass_time(50, silent=(0,))
    assert not cluster.found(b"k"), "long before its silence would tell"
    counters = cluster.core.state.counters
    assert (counters.unreachable_reports, counters.probes, counters.failed_probes) == (3, 1, 1)
    cluster.step(m.Heartbeat(1))
    assert cluster.found(b"k")


def test_any_message_answers_a_probe_and_the_next_report_probes_again() -> None:
    cluster = Cluster(nodes=1, config=replace(CONFIG, probe_ms=100))
    cluster.put(b"k", KIB)
    for expected in (1, 2, 3):
        unreachable(cluster, b"k")
        assert pings(cluster) == expected
        cluster.step(m.Heartbeat(1))
    unreachable(cluster, b"k")  # the timer of the first one now sees to this one
    cluster.pass_time(100, silent=(0,))
    assert cluster.core.state.counters.failed_probes == 1
    cluster.pass_time(500)
    assert cluster.found(b"k")


def test_a_stall_of_the_master_answers_no_probe_and_fails_none() -> None:
    cluster = Cluster(nodes=1, config=replace(CONFIG, probe_ms=100))
    cluster.put(b"k", KIB)
    unreachable(cluster, b"k")
    cluster.now += 10_000
    cluster.step(m.Tick())
    assert cluster.found(b"k")
    cluster.pass_time(100, silent=(0,))
    assert not cluster.found(b"k")


def test_a_write_that_failed_makes_the_master_ask_its_node() -> None:
    cluster = Cluster(nodes=2)
    started = cluster.start(b"k", KIB, copies=2)
    assert started is not None
    cluster.end(started, failed=((0, 0, 1),))
    assert pings(cluster) == 1


def one_of_two_recorded(nodes: int) -> tuple[Cluster, int, m.Record, m.Record]:
    """A put of two copies that has ended: the first of its nodes has recorded it, the second has not."""
    cluster = Cluster(nodes)
    started = cluster.start(b"k", KIB, copies=2)
    assert started is not None
    cluster.hold = True
    call = cluster.end(started)
    first, second = cluster.held
    assert isinstance(first, m.Record)
    assert isinstance(second, m.Record)
    cluster.step(m.Ack(first.stream, 7, [first.command_id]))
    return cluster, call, first, second


def test_a_node_that_recorded_and_attached_again_keeps_the_copy_while_others_record() -> None:
    cluster, call, first, second = one_of_two_recorded(nodes=2)
    node = cluster.core.state.streams[first.stream]
    cluster.attach(int(node.node_id[1:]), stream=9, held=tuple(first.copies), epoch=7)
    assert not any(isinstance(effect, m.Forget) for effect in cluster.sent)
    cluster.step(m.Ack(second.stream, 7, [second.command_id]))
    assert cluster.answers[call] == m.PutEnded([Result.OK], [2])


def test_a_node_that_recorded_and_left_does_not_count_while_others_record() -> None:
    cluster, call, first, second = one_of_two_recorded(nodes=2)
    cluster.step(m.Leave(first.stream))
    cluster.step(m.Ack(second.stream, 7, [second.command_id]))
    assert cluster.answers[call] == m.PutEnded([Result.OK], [1])
    assert cluster.found(b"k")


def test_a_put_whose_only_holder_fell_silent_before_the_others_answered_must_be_put_again() -> None:
    cluster, call, first, second = one_of_two_recorded(nodes=3)
    cluster.step(m.Broken(first.stream))
    assert call not in cluster.answers
    cluster.step(m.Broken(second.stream))
    assert cluster.answers[call] == m.PutEnded([Result.LOST], [0])
    cluster.hold, cluster.held = False, []
    cluster.put(b"k", KIB)
    assert cluster.found(b"k")
    cluster.attach(first.stream - 1, stream=9, held=tuple(first.copies), epoch=7)
    assert any(isinstance(effect, m.Forget) and effect.stream == 9 for effect in cluster.sent)


def test_write_ids_of_reigns_that_share_an_epoch_differ() -> None:
    ids = []
    for salt in (3, 900):
        core = Master(CONFIG, epoch=7, salt=salt)
        core.step(0, m.Hello(1, "n0", 1, 0, "h0", [m.SegmentInfo(16 * KIB)]))
        core.step(0, m.InventoryEnd(1))
        effects = core.step(0, m.PutStart(1, bytes(16), [b"k"], [KIB]))
        (reply,) = [effect for effect in effects if isinstance(effect, m.Reply)]
        assert isinstance(reply.answer, m.PutStarted)
        ids += reply.answer.write_ids
    assert ids == [(7 << 32) + 4, (7 << 32) + 901]


def test_a_stranger_that_obeyed_the_same_epoch_obeyed_another_master() -> None:
    cluster = Cluster(nodes=0)
    cluster.infos = [m.SegmentInfo(16 * KIB)]
    cluster.attach(0, epoch=7)
    assert cluster.core.state.epoch == 8
    cluster.attach(0, stream=5, epoch=8)  # and this one is known
    assert cluster.core.state.epoch == 8


def test_segments_that_went_can_still_be_named() -> None:
    cluster = Cluster(nodes=2)
    started = cluster.start(b"k", KIB)
    assert started is not None
    (ref,) = started.places.segments
    segment = cluster.core.state.segments[ref.number]
    assert segment.node.stream is not None
    cluster.step(m.Leave(segment.node.stream))
    assert ref.number not in cluster.core.state.segments
    first, again = cluster.calls, cluster.call()
    cluster.step(m.PutStart(again, first.to_bytes(16, "big"), [b"k"], [KIB], 1))
    assert cluster.answers[again] is started
    assert (ref.node_id, ref.host_id, ref.info) == (segment.node.node_id, segment.node.host_id, segment.info)
