"""Transcripts of the core: what is bounded, and what whoever asks for more is told (invariant 12)."""

from dataclasses import replace

import pytest

from services.master.core import extents, losses, repair
from services.master.core import messages as m
from services.master.core.calls import RETRY_MS
from services.master.core.messages import Result
from tests.unit.master.transcript import CONFIG, KIB, Cluster


def start(cluster: Cluster, keys: list[bytes], client: str, size: int = 256, wait_ms: int = 0) -> m.Answer | None:
    call = cluster.call()
    command = m.PutStart(call, call.to_bytes(16, "big"), keys, [size] * len(keys), wait_ms=wait_ms, client=client)
    cluster.step(command)
    return cluster.answers.get(call)


def opened(answer: m.Answer | None) -> list[int]:
    assert isinstance(answer, m.PutStarted)
    assert set(answer.results) == {Result.OK}
    return answer.write_ids


def refusal(answer: m.Answer | None) -> str:
    assert isinstance(answer, m.Rejected)
    assert (answer.overloaded, answer.retry_ms) == (True, RETRY_MS)
    return answer.reason


def test_one_client_cannot_take_all_writes() -> None:
    cluster = Cluster(config=replace(CONFIG, writes_per_client_max=4, writes_max=6))
    first = opened(start(cluster, [b"a", b"b", b"c"], "one"))
    assert "this client has 3 writes under way: 4 are allowed" in refusal(start(cluster, [b"d", b"e"], "one"))
    opened(start(cluster, [b"f", b"g"], "other"))
    assert refusal(start(cluster, [b"h", b"i"], "third")) == "too many writes are under way"
    cluster.step(m.PutAbort(900, b"a" * 16, first[:2]))
    opened(start(cluster, [b"d", b"e"], "one"))
    cluster.pass_time(CONFIG.write_ttl_ms + 100)
    assert cluster.core.writes.grants.total == 0
    opened(start(cluster, [b"w", b"x", b"y", b"z"], "one"))


def test_what_exists_or_finds_no_room_does_not_count() -> None:
    cluster = Cluster(nodes=1, config=replace(CONFIG, writes_per_client_max=2))
    cluster.put(b"there", KIB)
    for _ in range(5):
        answer = start(cluster, [b"there", b"large"], "one", size=17 * KIB)
        assert isinstance(answer, m.PutStarted)
        assert answer.results == [Result.EXISTS, Result.TOO_LARGE]
    opened(start(cluster, [b"a", b"b"], "one"))


def test_a_retry_is_no_second_grant_and_is_not_refused() -> None:
    cluster = Cluster(config=replace(CONFIG, writes_per_client_max=1))
    command = m.PutStart(1, b"r" * 16, [b"k"], [KIB], client="one")
    cluster.step(command)
    cluster.step(replace(command, call=2))
    assert cluster.answers[1] == cluster.answers[2]
    assert cluster.core.writes.grants.total == 1


def test_one_client_cannot_fill_the_queue_of_waiting_puts() -> None:
    cluster = Cluster(nodes=1, capacity=4 * KIB, config=replace(CONFIG, waiting_max=3, waiting_per_client_max=2))
    opened(start(cluster, [b"fill"], "one", size=4 * KIB))
    for key in (b"a", b"b"):
        assert start(cluster, [key], "one", size=4 * KIB, wait_ms=500) is None
    assert "this client has 2 puts that wait" in refusal(start(cluster, [b"c"], "one", size=4 * KIB, wait_ms=500))
    assert start(cluster, [b"c"], "other", size=4 * KIB, wait_ms=500) is None
    assert "too many puts wait" in refusal(start(cluster, [b"d"], "third", size=4 * KIB, wait_ms=500))
    cluster.pass_time(500)
    assert not cluster.core.puts.waiting


def test_matches_beyond_the_bound_do_not_wait() -> None:
    cluster = Cluster(config=replace(CONFIG, waiting_max=2))
    opened(start(cluster, [b"k"], "one"))
    calls = [cluster.match([b"k"], wait_ms=500) for _ in range(3)]
    assert [call in cluster.answers for call in calls] == [False, False, True]
    assert cluster.answers[calls[2]] == m.Matched(0)


def test_answers_are_remembered_for_so_many_keys() -> None:
    cluster = Cluster(config=replace(CONFIG, remembered_max=4))
    for i in range(10):
        start(cluster, [b"%d" % i, b"%d!" % i], "one")
    assert len(cluster.core.calls._answered) == 2


def test_an_inventory_of_more_than_fits_ends_the_stream() -> None:
    cluster = Cluster(nodes=0)
    cluster.infos = [m.SegmentInfo(KIB)]
    cluster.step(m.Hello(1, "n0", 1, 0, "h0", cluster.infos))
    claim = m.HeldCopy(b"k", 1, 256, 1, 0, 1, 0, 256, 9, 0)
    cluster.step(m.Inventory(1, [claim] * 4))
    assert not any(isinstance(effect, m.Close) for effect in cluster.sent)
    cluster.step(m.Inventory(1, [claim]))
    closes = [effect.reason for effect in cluster.sent if isinstance(effect, m.Close)]
    assert closes == ["the inventory has more copies than fit into the pools"]
    assert not cluster.core.state.nodes["n0"].inventory


def test_a_node_that_comes_and_goes_is_reviewed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(nodes=1, capacity=4 << 20)
    keys = [b"%d" % i for i in range(3000)]
    call = cluster.call()
    cluster.step(m.PutStart(call, call.to_bytes(16, "big"), keys, [256] * len(keys)))
    started = cluster.answers[call]
    assert isinstance(started, m.PutStarted)
    cluster.end(started)
    node, looked_at = cluster.core.state.nodes["n0"], []
    monkeypatch.setattr(cluster.core.repair, "want", looked_at.append)
    for _ in range(20):
        cluster.core.repair.review(node)
    while (seen := len(looked_at)) < len(keys):
        assert not seen or cluster.core.next_deadline_ms() == cluster.now
        cluster.step(m.Tick())
        assert seen < len(looked_at) <= seen + repair.REVIEWS_PER_STEP
    cluster.step(m.Tick())
    assert [obj.key for obj in looked_at] == keys  # each once; the last used first


def test_a_lost_nodes_objects_are_dealt_with_a_few_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "SWEEP_PER_STEP", 3)
    cluster = Cluster(nodes=1)
    for i in range(8):
        cluster.put(b"%d" % i, KIB)
    cluster.step(m.Broken(1))
    cluster.now += CONFIG.lost_ms
    lost = []
    while cluster.core.state.objects:
        cluster.now += CONFIG.heartbeat_ms if not lost else 0
        cluster.step(m.Tick())
        if cluster.core.state.counters.lost_objects:
            lost.append(cluster.core.state.counters.lost_objects)
    assert lost == [3, 6, 8]


def test_puts_that_wait_for_repair_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "PROMISES_MAX", 1)
    cluster = Cluster(nodes=3)
    cluster.hold = True
    calls = []
    for key in (b"a", b"b"):
        started = cluster.start(key, KIB, copies=2)
        assert started is not None
        calls.append(cluster.end(started, failed=((0, 0, 1),), wait_ms=1000))
    for record in [effect for effect in cluster.held if isinstance(effect, m.Record)]:
        cluster.step(m.Ack(record.stream, 7, [record.command_id]))
    assert [call in cluster.answers for call in calls] == [False, True]


def test_no_message_tells_a_node_to_forget_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "EXTENTS_PER_FORGET", 3)
    cluster = Cluster(nodes=0)
    cluster.infos = [m.SegmentInfo(16 * KIB)]
    held = [
        m.HeldCopy(b"%d" % i, 1, 2 * KIB, 1, 0, 1, i * KIB, 2 * KIB, 9, 0) for i in range(10)
    ]  # each overlaps the next
    cluster.attach(0, held=tuple(held))

    def forgotten() -> list[int]:
        forgets = [effect.extents for effect in cluster.sent if isinstance(effect, m.Forget)]
        cluster.sent.clear()
        return [len(places) for places in forgets]

    assert forgotten() == [3, 2]
    keys = [b"%d" % i for i in range(0, 10, 2)]
    call = cluster.call()
    cluster.step(m.Remove(call, call.to_bytes(16, "big"), keys))
    assert forgotten() == [3, 2]
    assert cluster.answers[call] == m.Removed([Result.OK] * 5)
