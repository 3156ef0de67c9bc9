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
    return m.Farewell(stream) in cluster.sent


def test_a_drained_nodes_copies_are_made_elsewhere_and_it_is_let_go() -> None:
    cluster = Cluster(nodes=3)
    keys = [b"k%d" % i for i in range(6)]
    for i, key in enumerate(keys):
        cluster.put(key, KIB, copies=1 + i % 2)
    before = {key: holders(cluster, key) for key in keys}
    assert isinstance(drain(cluster, "n1"), m.DrainSet)
    assert m.Draining(2, True) in cluster.sent
    cluster.pass_time(CONFIG.lease_ms + 300)
    for key in keys:
        assert "n1" not in holders(cluster, key)
        assert len(holders(cluster, key)) == len(before[key])
    assert has_gone(cluster, 2)
    assert list(cluster.core.state.nodes) == ["n0", "n2"]
    assert cluster.core.state.counters.drained_copies == sum("n1" in nodes for nodes in before.values())
    assert cluster.core.state.counters.lost_copies == 0


def test_nothing_is_placed_on_a_node_that_is_to_go_and_its_copies_stay_readable() -> None:
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
    node = cluster.core.state.segments[started.places.segments[0]].node
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


def test_without_room_elsewhere_nothing_is_dropped_and_the_status_says_so() -> None:
    cluster = Cluster(nodes=2, config=replace(CONFIG, high_watermark=0.5))
    for i in range(16):
        cluster.put(b"k%d" % i, KIB)
    drain(cluster, "n0")
    cluster.pass_time(1000)
    assert report(cluster, "n0") == m.DrainReport(8, 8)
    assert all(cluster.found(b"k%d" % i) for i in range(16))
    for key in [b"k%d" % i for i in range(16) if holders(cluster, b"k%d" % i) == ["n1"]]:
        cluster.step(m.Remove(cluster.call(), key.rjust(16), [key]))
    cluster.pass_time(1000 + CONFIG.lease_ms)
    assert has_gone(cluster, 1), "room has come"
    assert len(cluster.core.state.objects) == 8


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
    assert cluster.sent.count(m.Draining(int(name[1:]) + 1, False)) == 1


def test_a_new_master_hears_of_a_drain_from_the_node() -> None:
    cluster = Cluster(nodes=1)
    cluster.infos.append(m.SegmentInfo(16 * KIB, shm_token=b"another"))
    cluster.attach(1, draining=True)
    assert cluster.core.state.nodes["n1"].draining
    cluster.pass_time(200)
    assert has_gone(cluster, 2)


def test_a_node_that_missed_the_masters_word_is_told_when_it_attaches() -> None:
    cluster = Cluster(nodes=1)
    cluster.put(b"k", KIB)
    record = next(effect for effect in cluster.sent if isinstance(effect, m.Record))
    cluster.step(m.Broken(1))
    drain(cluster, "n0")
    cluster.attach(0, stream=11, held=tuple(record.copies), epoch=7)
    assert m.Draining(11, True) in cluster.sent


def test_an_unknown_node_is_refused() -> None:
    cluster = Cluster(nodes=2)
    answer = drain(cluster, "n7")
    assert isinstance(answer, m.Rejected)
    assert answer.reason == "there is no storage node 'n7': known are n0, n1"
