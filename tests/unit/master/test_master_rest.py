"""Transcripts of the core: what a master that was restarted says while free space rests, and what it leaves alone."""

from dataclasses import replace

from services.master.core import messages as m
from services.master.core.messages import Result
from tests.unit.master.transcript import CONFIG, KIB, Cluster

REST_MS = CONFIG.write_ttl_ms + CONFIG.late_write_ms


def held(key: bytes, offset: int, wanted: int = 1, used: int = 1) -> m.HeldCopy:
    return m.HeldCopy(key, used, KIB, 1, 0, 1, offset, KIB, 5, 0, wanted)


def restarted(nodes: int = 1, claims: tuple[tuple[m.HeldCopy, ...], ...] = ((),), config: object = CONFIG) -> Cluster:
    """Nodes that obeyed an earlier master, and hold what is claimed: segment numbers are put right."""
    cluster = Cluster(nodes=0, config=config)  # type: ignore[arg-type]
    cluster.infos = [m.SegmentInfo(16 * KIB, ways=b"%d" % i) for i in range(nodes)]
    for i in range(nodes):
        number = cluster.core.state.next_number + 1
        cluster.attach(i, held=tuple(claim._replace(segment=number) for claim in claims[i]), epoch=6)
    return cluster


def status(cluster: Cluster) -> m.StatusReport:
    call = cluster.call()
    cluster.step(m.Status(call))
    answer = cluster.answers[call]
    assert isinstance(answer, m.StatusReport)
    return answer


def test_a_put_that_finds_no_room_while_free_space_rests_is_told_since_when_and_for_how_long() -> None:
    cluster = restarted()
    cluster.pass_time(1000)
    refused = cluster.start(b"k", KIB)
    assert refused is not None
    assert refused.results == [Result.NO_SPACE]
    assert f"rested for 1.0 s and does for {(REST_MS - 1000) / 1000:.1f} s more" in refused.shortage
    assert refused.remedy == f"try again in {(REST_MS - 1000) / 1000:.0f} s; what is stored can be read meanwhile"
    said = status(cluster)
    assert (said.rested_ms, said.rest_left_ms) == (1000, REST_MS - 1000)
    cluster.pass_time(REST_MS)
    said = status(cluster)
    assert (said.rested_ms, said.rest_left_ms) == (0, 0)
    assert cluster.put(b"k", KIB).results == [Result.OK]


def test_a_put_is_not_told_of_a_rest_if_the_pools_are_just_full() -> None:
    cluster = Cluster(nodes=1, config=replace(CONFIG, high_watermark=1.0))
    held_back = [cluster.start(b"%d" % number, 4 * KIB) for number in range(4)]
    assert all(held_back)
    refused = cluster.start(b"k", KIB)
    assert refused is not None
    assert (refused.results, refused.shortage, refused.remedy) == ([Result.NO_SPACE], "", "")


def test_a_put_is_told_if_there_is_no_node_or_none_answers() -> None:
    cluster = Cluster(nodes=0)
    refused = cluster.start(b"k", KIB)
    assert refused is not None
    assert refused.shortage == "no storage node is attached"
    cluster = Cluster(nodes=2)
    cluster.step(m.Broken(1))
    cluster.step(m.Broken(2))
    refused = cluster.start(b"k", KIB)
    assert refused is not None
    assert refused.shortage == "none of 2 storage nodes answers now"


def test_nothing_is_displaced_for_repairs_while_free_space_rests() -> None:
    """One object lacks a copy; on the other node lies what is worth less, below the watermark in bytes that rest."""
    config = replace(CONFIG, high_watermark=0.5)
    # The older has no second copy; the other node has as many as the watermark allows, and all are worth less.
    first = tuple(held(b"wanted%d" % i, i * KIB, wanted=2, used=100 + i) for i in range(8))
    second = tuple(held(b"other%d" % i, i * KIB, used=1 + i) for i in range(8))
    cluster = restarted(nodes=2, claims=(first, second), config=config)
    for obj in first:
        cluster.lookup(obj.key)
    cluster.pass_time(REST_MS - 100)
    counters = cluster.core.state.counters
    assert (counters.displaced_objects, counters.evicted_objects, counters.repaired_copies) == (0, 0, 0)
    cluster.pass_time(2_000)
    assert counters.displaced_objects > 0, "after the rest it is as ever"


def test_a_drain_evicts_nothing_while_free_space_rests() -> None:
    config = replace(CONFIG, high_watermark=0.5)
    claims = tuple(tuple(held(b"%d-%d" % (n, i), i * KIB, used=1 + i) for i in range(8)) for n in range(2))
    cluster = restarted(nodes=2, claims=claims, config=config)
    cluster.pass_time(CONFIG.lease_ms + 100)
    cluster.step(m.Drain(cluster.call(), "n0"))
    cluster.pass_time(REST_MS - CONFIG.lease_ms - 300)
    assert cluster.core.state.counters.evicted_objects == 0
    cluster.pass_time(3_000)
    assert "n0" not in cluster.core.state.nodes, "after the rest it is as ever"


def test_a_second_node_extends_the_rest_and_its_beginning_stays() -> None:
    cluster = restarted(nodes=1)
    cluster.infos.append(m.SegmentInfo(16 * KIB, ways=b"later"))
    cluster.pass_time(1000)
    cluster.attach(1, epoch=6)
    said = status(cluster)
    assert (said.rested_ms, said.rest_left_ms) == (1000, REST_MS)


def test_too_many_waiting_puts_are_told_of_the_rest() -> None:
    cluster = restarted(config=replace(CONFIG, waiting_max=1))
    assert cluster.start(b"a", KIB, wait_ms=1000) is None
    call = cluster.call()
    cluster.step(m.PutStart(call, call.to_bytes(16, "big"), [b"b"], [KIB], 1, (), "", 1000))
    answer = cluster.answers[call]
    assert isinstance(answer, m.Rejected)
    assert "too many puts wait for room: free space has rested" in answer.reason
