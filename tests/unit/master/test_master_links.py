"""Transcripts of the core: nodes that answer the master and cannot reach each other."""

from dataclasses import replace

import pytest

from services.master.core import messages as m
from services.master.core.links import FIRST_MS, FORGOTTEN_MS, LONGEST_MS
from tests.unit.master.test_master_sources import fetches
from tests.unit.master.transcript import CONFIG, KIB, Cluster

REASON = "connection refused"


class Firewalled(Cluster):
    """Pairs (giver, taker) between which no copy gets through; everybody answers the master."""

    def __init__(self, *shut: tuple[int, int], nodes: int, capacity: int = 64 * KIB, config: object = CONFIG) -> None:
        self.shut: set[tuple[int, int]] = set()
        super().__init__(nodes=nodes, capacity=capacity, config=config)  # type: ignore[arg-type]
        self.shut = set(shut)
        self.tried: list[tuple[int, tuple[int, int]]] = []  # when, and the pair

    def acknowledge(self) -> None:
        held, self.held = self.held, []
        for effect in held:
            if isinstance(effect, m.Fetch):
                pair = int(effect.source.node_id[1:]), effect.stream - 1
                self.tried.append((self.now, pair))
                if pair in self.shut:
                    self.step(m.Ack(effect.stream, 7, [], [effect.command_id], [], [REASON]))
                    continue
            self.step(m.Ack(effect.stream, 7, [effect.command_id]))

    def put_on(self, key: bytes, node: int, copies: int = 2) -> None:
        """An object whose only copy is on that node: the others failed while they were written."""
        started = self.start(key, KIB, copies, host=f"h{node}")
        assert started is not None
        self.end(started, failed=tuple((0, 0, copy) for copy in range(1, copies)))

    def holders(self, key: bytes) -> set[str]:
        parts = self.core.state.objects[key].slices
        return {self.core.state.segments[copy.segment].node.node_id for copy in parts[0].copies}

    def notes(self) -> list[str]:
        return [effect.text for effect in self.sent if isinstance(effect, m.Note) and effect.grave]


def test_a_way_that_fails_is_tried_less_and_less_often_though_both_nodes_answer_probes() -> None:
    cluster = Firewalled((0, 1), nodes=2)
    cluster.put_on(b"k", 0)
    for _ in range(32_000 // 50):
        cluster.pass_time(50)
    waits = [later - earlier for (earlier, _), (later, _) in zip(cluster.tried, cluster.tried[1:], strict=False)]
    assert 5 <= len(cluster.tried) <= 8, "not 45 a second"
    assert all(wait >= FIRST_MS << index for index, wait in enumerate(waits))
    cluster.pass_time(4 * LONGEST_MS)
    assert cluster.tried[-1][0] - cluster.tried[-2][0] <= LONGEST_MS + FIRST_MS, "it is never given up for good"
    assert all("n0" in note and "n1" in note and REASON in note for note in cluster.notes())
    assert len(cluster.notes()) == len(cluster.tried), "one line for each failure"

    cluster.shut.clear()
    cluster.pass_time(LONGEST_MS + FIRST_MS)
    assert cluster.holders(b"k") == {"n0", "n1"}
    cluster.shut = {(0, 1)}
    tries = len(cluster.tried)
    cluster.put_on(b"l", 0)
    cluster.pass_time(4 * FIRST_MS)
    assert len(cluster.tried) >= tries + 2, "a copy that got through was a new beginning"


def test_the_rest_of_a_pair_holds_up_no_other_pair() -> None:
    cluster = Firewalled((0, 1), nodes=3)
    cluster.put_on(b"first", 0, copies=3)
    cluster.pass_time(50)
    assert (0, 1) in [pair for _, pair in cluster.tried]
    failed_at = cluster.now
    for number in range(20):
        cluster.put_on(b"%d" % number, 0)
    cluster.pass_time(100)
    assert all(len(cluster.holders(b"%d" % number)) == 2 for number in range(20))
    assert all(pair != (0, 1) for at, pair in cluster.tried if at > failed_at)
    cluster.shut = {(0, 1), (0, 2)}
    cluster.put_on(b"other", 2)
    cluster.pass_time(100)
    assert len(cluster.holders(b"other")) == 2, "from another source it is written at once"


def test_a_pair_that_has_rested_gets_one_copy_to_try_and_all_the_others_once_it_got_through() -> None:
    cluster = Firewalled((0, 1), nodes=2)
    keys = [b"%d" % number for number in range(20)]
    for key in keys:
        cluster.put_on(key, 0)
    cluster.pass_time(5 * FIRST_MS)
    tried = len(cluster.tried)
    cluster.hold = True
    cluster.pass_time(8 * FIRST_MS)
    (trial,) = [effect for effect in cluster.held if isinstance(effect, m.Fetch)]
    assert trial in fetches(cluster)
    cluster.hold, cluster.shut = False, set()
    cluster.acknowledge()
    cluster.pass_time(100)
    assert all(cluster.holders(key) == {"n0", "n1"} for key in keys)
    assert len(cluster.tried) == tried + len(keys)


def test_failures_that_were_on_their_way_together_count_as_one() -> None:
    cluster = Firewalled((0, 1), nodes=2)
    cluster.hold = True
    started = [cluster.start(b"%d" % number, KIB, 2, host="h0") for number in range(10)]
    for each in started:
        assert each is not None
        cluster.end(each, failed=((0, 0, 1),))
    for effect in [effect for effect in cluster.held if isinstance(effect, m.Record)]:
        cluster.held.remove(effect)
        cluster.step(m.Ack(effect.stream, 7, [effect.command_id]))
    cluster.pass_time(50)
    assert sum(isinstance(effect, m.Fetch) for effect in cluster.held) == 10
    cluster.hold = False
    cluster.acknowledge()
    assert len(cluster.notes()) == 1
    cluster.pass_time(FIRST_MS + 600)
    assert len(cluster.tried) == 11


def test_nothing_is_evicted_for_a_copy_that_waits_for_its_way_until_that_failed_for_long() -> None:
    cluster = Firewalled((0, 2), nodes=3, config=replace(CONFIG, high_watermark=0.5))
    for number in range(32):
        answer = cluster.start(b"full%d" % number, KIB, host="h1")
        assert answer is not None
        cluster.end(answer)
    answer = cluster.start(b"k", KIB, 2, host="h0")
    assert answer is not None
    cluster.end(answer)
    assert cluster.holders(b"k") == {"n0", "n2"}
    (number,) = (segment.number for segment in cluster.core.state.nodes["n2"].segments)
    (copy,) = (copy for copy in cluster.core.state.objects[b"k"].slices[0].copies if copy.segment == number)
    cluster.step(m.Report(cluster.call(), [b"k"], [0], [number], [copy.offset], [m.Fault.CORRUPT]))
    cluster.pass_time(2 * FIRST_MS)
    assert {pair for _, pair in cluster.tried} == {(0, 2)}
    assert cluster.core.state.counters.displaced_objects == 0
    cluster.pass_time(8 * FIRST_MS)
    assert cluster.holders(b"k") == {"n0", "n1"}
    assert cluster.core.state.counters.displaced_objects >= 1


def test_a_new_life_of_a_node_is_a_new_beginning_and_so_is_a_long_time() -> None:
    cluster = Firewalled((0, 1), nodes=2, config=replace(CONFIG, repair_timeout_ms=100))
    cluster.put_on(b"k", 0)
    cluster.pass_time(20_000)
    rests = cluster.core.repair.transfers.links
    giver, taker = (cluster.core.state.nodes[name] for name in ("n0", "n1"))
    assert not rests.is_open(giver, taker)
    assert rests.is_given_up([giver], taker)
    taker.incarnation += 1
    assert rests.is_open(giver, taker)
    taker.incarnation -= 1
    cluster.core.state.now += FORGOTTEN_MS + LONGEST_MS
    assert not rests.is_given_up([giver], taker)
    cluster.core.state.now -= FORGOTTEN_MS + LONGEST_MS


@pytest.mark.parametrize("wait_ms", [0, 2_000])
def test_a_put_is_answered_at_once_if_its_other_node_is_known_to_be_unreachable(wait_ms: int) -> None:
    cluster = Firewalled((0, 1), nodes=2)
    cluster.put_on(b"k", 0)
    cluster.pass_time(100)
    started = cluster.start(b"l", KIB, 2, host="h0")
    assert started is not None
    call = cluster.end(started, failed=((0, 0, 1),), wait_ms=wait_ms)
    cluster.pass_time(50)
    answer = cluster.answers[call]
    assert isinstance(answer, m.PutEnded)
    assert answer.copies == [1]
