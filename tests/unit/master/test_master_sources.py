"""Transcripts of the core: what a repair reads from, and what becomes of a source that is corrupt."""

from services.master.core import messages as m
from tests.unit.master.transcript import CONFIG, KIB, Cluster


def fetches(cluster: Cluster) -> list[m.Fetch]:
    return [effect for effect in cluster.sent if isinstance(effect, m.Fetch)]


def degraded(nodes: int = 2, failed: int = 1) -> Cluster:
    """One object of which not all copies could be written: the rest is being fetched."""
    cluster = Cluster(nodes=nodes)
    started = cluster.start(b"k", KIB, copies=nodes)
    assert started is not None
    cluster.end(started, failed=tuple((0, 0, copy) for copy in range(nodes - failed, nodes)))
    cluster.hold = True
    cluster.pass_time(100)
    cluster.hold = False
    cluster.held.clear()  # nobody has answered the fetch
    return cluster


def test_a_source_that_is_corrupt_is_dropped_and_the_other_copy_is_read() -> None:
    cluster = degraded(nodes=3)
    (first,) = fetches(cluster)
    cluster.step(m.Ack(first.stream, 7, [], [], [first.command_id]))
    assert cluster.core.state.counters.corrupt_copies == 1
    cluster.pass_time(CONFIG.late_write_ms)
    again = fetches(cluster)[1]
    assert again.source != first.source


def test_a_last_copy_that_a_repair_finds_corrupt_takes_the_object_along() -> None:
    cluster = degraded()
    (fetch,) = fetches(cluster)
    cluster.step(m.Ack(fetch.stream, 7, [], [], [fetch.command_id]))
    assert not cluster.found(b"k")
    cluster.pass_time(CONFIG.late_write_ms)
    assert len(fetches(cluster)) == 1, "there is nothing to copy from"


def test_a_source_stays_where_it_is_as_long_as_it_is_read_and_no_longer() -> None:
    cluster = degraded()
    (fetch,) = fetches(cluster)
    segment = cluster.core.state.segments[fetch.source.number]
    call = cluster.call()
    cluster.step(m.Remove(call, call.to_bytes(16, "big"), [b"k"]))
    assert segment.quarantined_bytes == KIB, "it is being read"
    cluster.pass_time(2 * CONFIG.repair_timeout_ms)
    assert segment.quarantined_bytes == 0

    cluster = degraded()
    (fetch,) = fetches(cluster)
    cluster.step(m.Ack(fetch.stream, 7, [fetch.command_id]))
    call = cluster.call()
    cluster.step(m.Remove(call, call.to_bytes(16, "big"), [b"k"]))
    assert cluster.core.state.segments[fetch.source.number].quarantined_bytes == 0
