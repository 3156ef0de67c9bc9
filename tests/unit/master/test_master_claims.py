"""Two processes with one node id: the master asks the one it knows, and believes its word."""

from dataclasses import replace

from services.master.core import messages as m
from tests.unit.master.transcript import CONFIG, KIB, Cluster

PROBE_MS = 100
CONFIG = replace(CONFIG, probe_ms=PROBE_MS)
NEWCOMER = 50


def claim(cluster: Cluster, stream: int = NEWCOMER, incarnation: int = 2, token: bytes = b"other") -> list[m.Effect]:
    info = m.SegmentInfo(16 * KIB, ways=token)
    return cluster.step(m.Hello(stream, "n0", incarnation, 0, "h9", [info], where="here (198.18.0.9)"))


def ended(cluster: Cluster, stream: int) -> m.Close | None:
    return next((each for each in cluster.sent if isinstance(each, m.Close) and each.stream == stream), None)


def is_welcome(cluster: Cluster, stream: int) -> bool:
    return any(isinstance(each, m.Welcome) and each.stream == stream for each in cluster.sent)


def one_node() -> Cluster:
    cluster = Cluster(nodes=0, config=CONFIG)
    info = m.SegmentInfo(16 * KIB, ways=b"own")
    cluster.infos = [info]
    cluster.step(m.Hello(1, "n0", 1, 0, "h0", [info], where="there (198.18.0.1)"))
    cluster.step(m.Inventory(1, []))
    cluster.step(m.InventoryEnd(1))
    cluster.put(b"k", KIB)
    return cluster


def test_a_newcomer_is_refused_while_the_node_says_that_it_lives() -> None:
    cluster = one_node()
    for incarnation in (2, 1, 0):  # later, as any process is that starts later; equal by chance; earlier
        cluster.sent.clear()
        effects = claim(cluster, NEWCOMER + incarnation, incarnation)
        assert not is_welcome(cluster, NEWCOMER + incarnation)
        if incarnation:
            assert effects == [m.Ping(1, 7)]
            cluster.step(m.Heartbeat(1))
        refused = ended(cluster, NEWCOMER + incarnation)
        assert refused is not None
        assert refused.id_taken
        assert "n0" in refused.reason
        assert "there (198.18.0.1)" in refused.reason
        assert "--node-id" in refused.reason
        assert ended(cluster, 1) is None
        assert cluster.found(b"k")
    cluster.pass_time(10 * PROBE_MS)
    assert cluster.found(b"k"), "what was refused stays refused"


def test_a_newcomer_takes_the_place_of_a_node_that_says_nothing() -> None:
    cluster = one_node()
    claim(cluster)
    cluster.pass_time(PROBE_MS - 50, silent=(0,))
    assert not is_welcome(cluster, NEWCOMER)
    cluster.pass_time(100, silent=(0,))
    assert is_welcome(cluster, NEWCOMER)
    former = ended(cluster, 1)
    assert former is not None
    assert "here (198.18.0.9)" in former.reason
    assert not cluster.found(b"k")
    cluster.step(m.Broken(1))
    cluster.step(m.InventoryEnd(NEWCOMER))
    cluster.put(b"k", KIB)


def test_a_newcomer_takes_the_place_of_a_node_whose_stream_broke_and_that_does_not_dial_again() -> None:
    for away_ms, waits in ((0, True), (PROBE_MS - 50, True), (PROBE_MS, False)):
        cluster = one_node()
        cluster.step(m.Broken(1))
        cluster.pass_time(away_ms)
        claim(cluster)
        assert is_welcome(cluster, NEWCOMER) is not waits
        cluster.pass_time(PROBE_MS - away_ms)
        assert is_welcome(cluster, NEWCOMER)


def test_a_node_whose_stream_broke_keeps_its_id_if_it_dials_again_at_once() -> None:
    cluster = one_node()
    held = next(effect for effect in cluster.sent if isinstance(effect, m.Record)).copies
    cluster.step(m.Broken(1))
    claim(cluster)
    cluster.pass_time(PROBE_MS - 50)
    cluster.attach(0, stream=2, epoch=7, held=tuple(held))
    assert ended(cluster, NEWCOMER) is not None
    cluster.pass_time(1000)
    assert cluster.found(b"k")
    assert ended(cluster, 2) is None


def test_a_stream_that_breaks_while_it_is_asked_answers_soon() -> None:
    cluster = one_node()
    claim(cluster)
    cluster.step(m.Broken(1))
    cluster.pass_time(PROBE_MS)
    assert is_welcome(cluster, NEWCOMER)


def test_of_several_newcomers_the_last_one_counts_unless_it_has_left() -> None:
    cluster = one_node()
    claim(cluster, 50)
    claim(cluster, 51, token=b"third")
    assert ended(cluster, 50) is not None
    cluster.step(m.Broken(50))
    cluster.step(m.Broken(51))
    cluster.pass_time(10 * PROBE_MS, silent=(0,))
    assert not is_welcome(cluster, 51)
    cluster.step(m.Heartbeat(1))
    assert cluster.found(b"k"), "nobody is left that wants the id: the node was only slow"


def test_a_silent_node_that_speaks_when_it_is_asked_was_only_slow() -> None:
    cluster = one_node()
    cluster.pass_time(CONFIG.silence_ms + 100, silent=(0,))
    assert not cluster.found(b"k")
    claim(cluster)
    cluster.step(m.Heartbeat(1))
    assert ended(cluster, NEWCOMER) is not None
    assert cluster.found(b"k")


def test_a_newcomer_takes_the_place_of_a_node_that_falls_silent_during_its_inventory() -> None:
    cluster = Cluster(nodes=0, config=CONFIG)
    cluster.step(m.Hello(1, "n0", 1, 0, "h0", [m.SegmentInfo(16 * KIB)]))
    claim(cluster)
    cluster.pass_time(3 * PROBE_MS, silent=(0,))
    assert ended(cluster, 1) is not None
    assert is_welcome(cluster, NEWCOMER)


def test_a_newcomer_takes_the_place_of_a_node_that_leaves() -> None:
    cluster = one_node()
    cluster.step(m.Leave(1))
    claim(cluster)
    assert is_welcome(cluster, NEWCOMER)
