"""Transcripts of the core: nodes that are to go."""

from dataclasses import replace

from services.master.core import messages as m
from services.master.core.messages import Result
from tests.unit.master.transcript import CONFIG, KIB, Cluster


def drain(cluster: Cluster, name: str, *, cancel: bool = False) -> m.Answer:
    call = cluster.call()
    cluster.step(m.Drain(call, name, cancel))
    return cluster.answers[call]


def holders(cluster: Cluster, key: bytes) -> list[str]:
    obj, segments = cluster.core.state.objects[key], cluster.core.state.segments
    return sorted({segments[copy.segment].node.node_id for part in obj.slices for copy in part.copies})


def report(cluster: Cluster, name: str) -> m.DrainReport | None:
    call = cluster.call()
    cluster.step(m.Status(call))
    status = cluster.answers[call]
    assert isinstance(status, m.StatusReport)
    return next(node.drain for node in status.nodes if node.node_id == name)


def has_gone(cluster: Cluster, stream: int) -> bool:
    return any(isinstance(effect, m.Farewell) and effect.stream == stream for effect in cluster.sent)


def test_a_drained_nodes_copies_are_made_elsewhere_and_it_is_let_go() -> None:
    cluster = Cluster(nodes=3)
    keys = [b"k%d" % i for i in range(6)]
    for i, key in enumerate(keys):
        cluster.put(key, KIB, copies=1 + i % 2)
    before = {key: holders(cluster, key) for key in keys}
    assert isinstance(drain(cluster, "n1"), m.DrainSet)
    assert m.Draining(2, 7, True) in cluster.sent
    cluster.pass_time(CONFIG.lease_ms + 300)
    for key in keys:
        assert "n1" not in holders(cluster, key)
        assert len(holders(cluster, key)) == len(before[key])
    assert has_gone(cluster, 2)
    assert list(cluster.core.state.nodes) == ["n0", "n2"]
    assert cluster.core.state.counters.drained_copies == sum("n1" in nodes for nodes in before.values())
    assert cluster.core.state.counters.lost_copies == 0


def test_nothing_is_placed_on_a_draining_node_and_its_copies_stay_readable() -> None:
    cluster = Cluster(nodes=2)
    cluster.put(b"old", KIB, copies=1)
    (name,) = holders(cluster, b"old")
    cluster.hold = True  # nothing is copied
    drain(cluster, name)
    drain(cluster, name)
    assert sum(isinstance(effect, m.Draining) for effect in cluster.sent) == 1, "asking twice is asking once"
    assert cluster.lookup(b"old").results == [Result.OK]
    cluster.hold = False
    assert cluster.put(b"new", KIB, copies=2) == m.PutEnded([Result.OK], [1])
    assert name not in holders(cluster, b"new")


def test_a_node_stays_until_the_leases_on_what_it_held_have_ended() -> None:
    cluster = Cluster(nodes=2)
    cluster.put(b"k", KIB)
    (name,) = holders(cluster, b"k")
    cluster.lookup(b"k")
    drain(cluster, name)
    cluster.pass_time(CONFIG.lease_ms - 50)
    assert name not in holders(cluster, b"k")
    assert not has_gone(cluster, int(name[1:]) + 1)
    cluster.pass_time(150)
    assert has_gone(cluster, int(name[1:]) + 1)


def test_a_put_under_way_to_the_node_ends_well_and_is_moved_after() -> None:
    cluster = Cluster(nodes=2)
    started = cluster.start(b"k", KIB)
    assert started is not None
    node = cluster.core.state.segments[started.places.segments[0].number].node
    drain(cluster, node.node_id)
    cluster.pass_time(300)
    assert node.node_id in cluster.core.state.nodes
    assert cluster.answers[cluster.end(started)] == m.PutEnded([Result.OK], [1])
    cluster.pass_time(CONFIG.lease_ms + 500)
    assert node.node_id not in holders(cluster, b"k")
    assert node.node_id not in cluster.core.state.nodes


def test_where_no_other_node_could_hold_one_more_copy_the_others_are_enough() -> None:
    cluster = Cluster(nodes=2)
    cluster.put(b"k", KIB, copies=2)
    drain(cluster, "n0")
    cluster.pass_time(500)
    assert has_gone(cluster, 1)
    assert holders(cluster, b"k") == ["n1"]


def full(**config: object) -> tuple[Cluster, list[bytes]]:
    """Two nodes at their watermark: eight objects of one copy on each."""
    cluster = Cluster(nodes=2, config=replace(CONFIG, high_watermark=0.5, **config))  # type: ignore[arg-type]
    keys = [b"k%d" % i for i in range(16)]
    for key in keys:
        cluster.put(key, KIB)
    assert [len(segment.residents) for segment in cluster.core.state.segments.values()] == [8, 8]
    return cluster, keys


def test_a_full_cluster_keeps_what_was_used_last_when_a_node_is_drained() -> None:
    cluster, keys = full()
    wanted = [key for key in keys if holders(cluster, key) == ["n0"]][:5]
    wanted += [key for key in keys if holders(cluster, key) == ["n1"]][:3]
    for key in wanted:
        cluster.lookup(key)
    cluster.pass_time(CONFIG.lease_ms)
    drain(cluster, "n0")
    cluster.pass_time(2000)
    assert has_gone(cluster, 1)
    assert {key for key in keys if cluster.found(key)} == set(wanted)
    counters = cluster.core.state.counters
    assert (counters.repaired_copies, counters.displaced_objects) == (5, 5)
    assert counters.evicted_objects == 8, "what was worth least on the drained node was not copied first"
    assert counters.lost_objects == 0


def test_what_is_leased_is_waited_for_and_the_status_says_so() -> None:
    cluster, keys = full()
    for name in ("n1", "n0"):
        for key in keys:
            if holders(cluster, key) == [name]:
                cluster.lookup(key)
    drain(cluster, "n0")
    cluster.pass_time(CONFIG.lease_ms - 100)
    assert report(cluster, "n0") == m.DrainReport(8, 8)
    assert all(cluster.found(key) for key in keys)
    cluster.pass_time(2000)
    assert has_gone(cluster, 1)
    assert len(cluster.core.state.objects) == 8


def test_a_second_copy_that_would_be_the_first_to_go_is_not_moved() -> None:
    cluster = Cluster(nodes=3, config=replace(CONFIG, high_watermark=0.5))
    cluster.put(b"old", KIB, copies=2)
    (spare,) = {"n0", "n1", "n2"} - set(holders(cluster, b"old"))
    others = [b"k%d" % i for i in range(22)]  # every node has eight
    for key in others:
        cluster.put(key, KIB)
    drained = holders(cluster, b"old")[0]
    for key in others:
        if drained in holders(cluster, key):
            cluster.step(m.Remove(cluster.call(), key.rjust(16), [key]))
    drain(cluster, drained)
    cluster.pass_time(1000)
    assert has_gone(cluster, int(drained[1:]) + 1)
    assert len(holders(cluster, b"old")) == 1
    assert spare not in holders(cluster, b"old")
    assert cluster.core.state.counters.evicted_objects == 0


def test_what_is_pinned_hard_finds_room_however_much_the_rest_is_wanted() -> None:
    cluster = Cluster(nodes=2, config=replace(CONFIG, high_watermark=0.5))
    call = cluster.call()
    cluster.step(m.PutStart(call, bytes(16), [b"pinned"], [3 * KIB], 1, pin=m.Pin.HARD))
    started = cluster.answers[call]
    assert isinstance(started, m.PutStarted)
    cluster.end(started)
    (home,) = holders(cluster, b"pinned")
    for i in range(13):
        cluster.put(b"k%d" % i, KIB)
    drain(cluster, home)
    cluster.pass_time(2000)
    assert has_gone(cluster, int(home[1:]) + 1)
    assert cluster.found(b"pinned")
    assert len(cluster.core.state.objects) == 6


def test_the_last_node_keeps_everything() -> None:
    cluster = Cluster(nodes=1)
    cluster.put(b"k", KIB)
    drain(cluster, "n0")
    cluster.pass_time(1000)
    assert report(cluster, "n0") == m.DrainReport(1, 1)
    assert cluster.found(b"k")


def test_a_drain_that_is_called_off_leaves_the_node_and_no_surplus() -> None:
    cluster = Cluster(nodes=3)
    cluster.put(b"k", KIB, copies=2)
    name = holders(cluster, b"k")[0]
    cluster.hold = True
    drain(cluster, name)
    drain(cluster, name, cancel=True)
    cluster.hold = False
    cluster.acknowledge()
    cluster.pass_time(500)
    assert len(holders(cluster, b"k")) == 2
    assert len(cluster.core.state.nodes) == 3
    assert report(cluster, name) is None
    assert cluster.sent.count(m.Draining(int(name[1:]) + 1, 7, False)) == 1


def test_a_new_master_hears_of_a_drain_from_the_node() -> None:
    cluster = Cluster(nodes=1)
    cluster.infos.append(m.SegmentInfo(16 * KIB, ways=b"another"))
    cluster.attach(1, draining=True)
    assert cluster.core.state.nodes["n1"].draining
    cluster.pass_time(200)
    assert has_gone(cluster, 2)


def test_a_new_masters_room_that_rests_is_waited_for() -> None:
    former = Cluster(nodes=2)
    former.put(b"k", KIB)
    [record] = [effect for effect in former.sent if isinstance(effect, m.Record)]
    [holder] = holders(former, b"k")
    cluster = Cluster(nodes=0)
    cluster.infos = former.infos
    for number in range(2):
        cluster.attach(number, held=tuple(record.copies) if holder == f"n{number}" else (), epoch=7)
    drain(cluster, holder)
    cluster.pass_time(CONFIG.write_ttl_ms)
    assert report(cluster, holder) == m.DrainReport(1, 0)
    cluster.pass_time(CONFIG.late_write_ms + 2000)
    assert has_gone(cluster, int(holder[1:]) + 1)
    assert cluster.found(b"k")


def test_a_node_that_missed_its_drain_is_told_when_it_attaches() -> None:
    cluster = Cluster(nodes=1)
    cluster.put(b"k", KIB)
    record = next(effect for effect in cluster.sent if isinstance(effect, m.Record))
    cluster.step(m.Broken(1))
    drain(cluster, "n0")
    cluster.attach(0, stream=11, held=tuple(record.copies), epoch=7)
    assert m.Draining(11, 7, True) in cluster.sent


def test_an_unknown_node_is_refused() -> None:
    cluster = Cluster(nodes=2)
    answer = drain(cluster, "n7")
    assert isinstance(answer, m.Rejected)
    assert answer.reason == "there is no storage node 'n7': known are n0, n1"
