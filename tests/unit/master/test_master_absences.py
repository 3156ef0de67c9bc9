"""A node that was given up comes back with what it held: taken back is what nobody removed meanwhile."""

import pytest

from services.master.core import absences
from services.master.core import messages as m
from services.master.core.messages import Result
from tests.unit.master.transcript import CONFIG, KIB, Cluster


class Absence:
    """A cluster of two nodes; n0 goes, and returns with everything it was ever told to hold."""

    def __init__(self) -> None:
        self.cluster = Cluster(nodes=2)
        self.stream = 1

    def held(self) -> list[m.HeldCopy]:
        records = [each for each in self.cluster.sent if isinstance(each, m.Record) and each.stream == 1]
        return [copy for record in records for copy in record.copies]

    def put(self, key: bytes, copies: int = 1) -> None:
        started = self.cluster.start(key, KIB, copies, host="h0")
        assert started is not None
        assert self.cluster.answers[self.cluster.end(started)] == m.PutEnded([Result.OK], [copies])
        assert key in [copy.key for copy in self.held()]

    def remove(self, *keys: bytes) -> None:
        call = self.cluster.call()
        self.cluster.step(m.Remove(call, call.to_bytes(16, "big"), keys))

    def leave(self) -> None:
        self.cluster.step(m.Broken(self.stream))

    def be_given_up(self) -> None:
        self.cluster.pass_time(CONFIG.lost_ms + 500)
        assert "n0" not in self.cluster.core.state.nodes

    def dial(self) -> int:
        self.stream += 100
        cluster = self.cluster
        effects = cluster.step(m.Hello(self.stream, "n0", 1, 7, "h0", [cluster.infos[0]]))
        (welcome,) = [effect for effect in effects if isinstance(effect, m.Welcome)]
        return welcome.segments[0]

    def come_back(self) -> None:
        segment = self.dial()
        self.cluster.step(m.Inventory(self.stream, [copy._replace(segment=segment) for copy in self.held()]))
        self.cluster.step(m.InventoryEnd(self.stream))

    def found(self, *keys: bytes) -> list[bool]:
        return [self.cluster.found(key) for key in keys]


def test_what_nobody_removed_is_taken_back() -> None:
    absence = Absence()
    absence.put(b"lone")
    absence.put(b"both", copies=2)
    absence.leave()
    absence.be_given_up()
    assert absence.found(b"lone", b"both") == [False, True]
    absence.come_back()
    assert absence.found(b"lone", b"both") == [True, True]
    assert len(absence.cluster.core.state.objects[b"both"].slices[0].copies) == 2


@pytest.mark.parametrize("when", ["before it was given up", "after", "between two attempts to return"])
def test_what_was_removed_meanwhile_is_not(when: str) -> None:
    absence = Absence()
    for key, copies in ((b"lone", 1), (b"both", 2), (b"kept", 1)):
        absence.put(key, copies)
    absence.leave()
    if when == "before it was given up":
        absence.remove(b"lone", b"both")
    absence.be_given_up()
    if when == "after":
        absence.remove(b"lone", b"both")
    if when == "between two attempts to return":
        absence.dial()
        absence.remove(b"lone", b"both")
        absence.leave()
        absence.be_given_up()
    absence.come_back()
    assert absence.found(b"lone", b"both", b"kept") == [False, False, True]
    forgotten = [each for each in absence.cluster.sent if isinstance(each, m.Forget) and each.stream == absence.stream]
    assert sum(len(forget.extents) for forget in forgotten) == 2
    absence.cluster.pass_time(CONFIG.write_ttl_ms + CONFIG.late_write_ms)
    assert all(segment.quarantined_bytes == 0 for segment in absence.cluster.core.state.segments.values())


def test_what_it_was_told_to_forget_before_it_went_is_not_taken_back() -> None:
    absence = Absence()
    absence.put(b"k")
    absence.cluster.hold = True
    absence.remove(b"k")
    absence.cluster.held = []  # it never heard
    absence.leave()
    absence.cluster.hold = False
    absence.be_given_up()
    absence.come_back()
    assert absence.found(b"k") == [False]


def test_what_was_put_again_stays_what_it_is() -> None:
    absence = Absence()
    absence.put(b"k")
    absence.leave()
    absence.be_given_up()
    absence.remove(b"k")
    absence.cluster.put(b"k", 2 * KIB)
    absence.come_back()
    assert absence.cluster.lookup(b"k").sizes == [2 * KIB]


def test_when_too_much_was_removed_all_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absences, "REMOVED_MAX", 2)
    absence = Absence()
    absence.put(b"k")
    absence.leave()
    absence.be_given_up()
    absence.remove(b"1", b"2", b"3")
    absence.come_back()
    assert absence.found(b"k") == [False]


def test_what_is_remembered_is_bounded_and_ends_with_the_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absences, "AWAY_MAX", 2)
    held = absences.Absences()
    held.note_removed([b"before"], 1)
    for node in ("a", "b", "c"):
        held.begin(node, 1, [])
    held.note_removed([b"k"], 5)
    assert held.of("a", 1) is None
    assert held.of("b", 2) is None  # another life of it
    for _ in range(2):  # until it is said to be over
        away = held.of("c", 1)
        assert away is not None
        assert away.removed == {b"k": 5}
    held.end("b")
    held.end("c")
    assert held.of("c", 1) is None
    held.begin("c", 1, [])
    away = held.of("c", 1)
    assert away is not None
    assert away.removed == {}


def attach_late(cluster: Cluster, key: bytes) -> None:
    """A node that holds the key since an earlier master's time attaches to this one for the first time."""
    number = cluster.core.state.next_number + 1
    cluster.infos.append(m.SegmentInfo(16 * KIB, ways=b"late"))
    cluster.attach(len(cluster.infos) - 1, held=(m.HeldCopy(key, 1, KIB, 1, 0, number, 0, KIB, 5, 0),), epoch=6)


@pytest.mark.parametrize("how", ["remove", "replace and evict"])
def test_what_went_before_a_node_attached_for_the_first_time_is_not_taken_back(how: str) -> None:
    cluster = Cluster(nodes=1)
    cluster.put(b"k", KIB)
    call = cluster.call()
    if how == "remove":
        cluster.step(m.Remove(call, call.to_bytes(16, "big"), [b"k"]))
    else:
        cluster.step(m.PutStart(call, call.to_bytes(16, "big"), [b"k"], [KIB], replace=True))
        started = cluster.answers[call]
        assert isinstance(started, m.PutStarted)
        cluster.end(started)
        cluster.core.room.evict(cluster.core.state.objects[b"k"])
        cluster.step(m.Tick())
    attach_late(cluster, b"k")
    assert not cluster.found(b"k")
    attach_late(cluster, b"other")
    assert cluster.found(b"other")


def test_a_node_that_attaches_late_forgets_all_if_too_much_was_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absences, "REMOVED_MAX", 2)
    cluster = Cluster(nodes=1)
    cluster.step(m.Remove(cluster.call(), bytes(16), [b"1", b"2", b"3"]))
    attach_late(cluster, b"k")
    assert not cluster.found(b"k")
