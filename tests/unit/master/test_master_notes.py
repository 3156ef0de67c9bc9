"""Transcripts of the core: what operators read in the log of nodes, repairs and drains, one line each."""

from dataclasses import replace

from services.master.core import messages as m
from services.master.core.episodes import CALM_MS
from tests.unit.master.transcript import CONFIG, KIB, Cluster


def notes(cluster: Cluster) -> list[str]:
    return [effect.text for effect in cluster.sent if isinstance(effect, m.Note)]


def test_a_node_that_falls_silent_and_is_lost_is_told_and_so_are_the_repairs() -> None:
    cluster = Cluster(nodes=3, config=replace(CONFIG, repair_after_ms=100, lost_ms=3000))
    for number in range(6):
        cluster.put(b"%d" % number, KIB, copies=2)
    copies = cluster.core.state.segments[1].copies
    cluster.pass_time(CONFIG.silence_ms + 100 + CALM_MS + 200, silent=(0,))
    cluster.pass_time(3000, silent=(0,))
    said = notes(cluster)
    assert said[0] == "node n0 does not answer: its copies are not offered"
    assert said[1].startswith("repairs begin: objects that lack copies: ")
    assert said[2].startswith(f"repairs are done: copies made: {copies}, tries that failed: 0, in ")
    assert said[3] == f"node n0 is lost, away for 3 s: copies: {copies}"
    assert len(said) == 4


def test_repairs_in_a_row_are_told_as_one() -> None:
    cluster = Cluster(nodes=3)
    for number in range(5):
        started = cluster.start(b"%d" % number, KIB, copies=2)
        assert started is not None
        cluster.end(started, failed=((0, 0, 1),))
        cluster.pass_time(CALM_MS // 2)
    cluster.pass_time(2 * CALM_MS)
    begun, done = notes(cluster)
    assert begun == "repairs begin: objects that lack copies: 1"
    assert done.startswith("repairs are done: copies made: 5, ")


def test_a_drain_is_told_when_it_begins_is_called_off_and_ends() -> None:
    cluster = Cluster(nodes=2, config=replace(CONFIG, lease_ms=100))
    cluster.put(b"k", KIB, copies=1)
    (holder,) = (node for node in cluster.core.state.nodes.values() if node.segments[0].copies)
    cluster.hold = True
    for cancel in (False, True, True, False, False):
        cluster.step(m.Drain(cluster.call(), holder.node_id, cancel))
    cluster.hold = False
    cluster.acknowledge()
    cluster.pass_time(2 * CALM_MS)
    said = [note for note in notes(cluster) if "drain" in note]
    assert said == [
        f"the drain of node {holder.node_id} begins: 1 objects lie there",
        f"the drain of node {holder.node_id} is called off: 1 objects lie there",
        f"the drain of node {holder.node_id} begins: 1 objects lie there",
        f"the drain of node {holder.node_id} has ended: it leaves",
    ]
    other = next(iter(cluster.core.state.nodes.values()))
    assert other.stream is not None
    cluster.step(m.Leave(other.stream))
    assert notes(cluster)[-1] == f"node {other.node_id} leaves"
