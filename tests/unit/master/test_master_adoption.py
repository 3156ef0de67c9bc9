"""An inventory is adopted a few copies a step: others are served meanwhile, and may change what is known."""

from dataclasses import replace

import pytest

from services.master.core import messages as m
from services.master.core.messages import Result
from services.master.core.phases import Phase
from tests.unit.master.transcript import CONFIG, KIB, Cluster

SLOWLY = replace(CONFIG, adopted_per_step_max=2)
COUNT = 12


def key(number: int) -> bytes:
    return b"k%02d" % number


def claims(*, segment: int = 1, skip: int = 0) -> list[m.HeldCopy]:
    """Of `COUNT` objects, put in the opposite order of their places."""
    return [
        m.HeldCopy(key(i), 100 - i, KIB, 1, 0, segment, i * KIB, KIB, 9, 0) for i in range(COUNT) if i % 4 or not skip
    ]


class Attaching:
    """A master that began after the node n0 obeyed another; n1 is there already."""

    def __init__(self, nodes: int = 1) -> None:
        self.cluster = Cluster(nodes=0, config=SLOWLY)
        self.cluster.infos = [m.SegmentInfo(16 * KIB, ways=b"%d" % number) for number in range(2)]
        for number in range(1, nodes):
            self.cluster.attach(number)
        self.stream = 10

    @property
    def phase(self) -> Phase:
        return self.cluster.core.state.nodes["n0"].phase

    @property
    def adopted(self) -> int:
        return self.cluster.core.state.counters.adopted_copies

    def dial(self, held: list[m.HeldCopy] | None = None, epoch: int = 3) -> None:
        self.stream += 1
        cluster = self.cluster
        effects = cluster.step(m.Hello(self.stream, "n0", 1, epoch, "h0", [cluster.infos[0]]))
        (welcome,) = [effect for effect in effects if isinstance(effect, m.Welcome)]
        own = welcome.segments[0]
        inventory = claims(segment=own) if held is None else [claim._replace(segment=own) for claim in held]
        cluster.step(m.Inventory(self.stream, inventory))
        cluster.step(m.InventoryEnd(self.stream))

    def go_on(self, until_adopted: int | None = None) -> int:
        """In how many steps; a step adopts no more than it may."""
        steps = 0
        while self.phase is Phase.ATTACHING and (until_adopted is None or self.adopted < until_adopted):
            assert self.cluster.core.next_deadline_ms() == self.cluster.now
            before = self.adopted
            self.cluster.step(m.Tick())
            assert self.adopted - before <= SLOWLY.adopted_per_step_max
            steps += 1
            assert steps < 100
        return steps

    def found(self) -> list[int]:
        return [number for number in range(COUNT) if self.cluster.found(key(number))]


def test_it_takes_as_many_steps_as_it_needs_and_others_are_served_meanwhile() -> None:
    attaching = Attaching(nodes=2)
    attaching.cluster.put(b"other", KIB)
    attaching.dial()
    attaching.go_on(until_adopted=COUNT // 2)
    assert attaching.phase is Phase.ATTACHING
    assert not attaching.cluster.found(key(0))  # nothing there before all is known
    assert attaching.cluster.found(b"other")
    assert attaching.cluster.put(b"another", KIB).results == [Result.OK]
    assert attaching.go_on() > COUNT // 4
    assert attaching.phase is Phase.LIVE
    assert attaching.found() == list(range(COUNT))


def test_what_was_put_first_is_evicted_first_wherever_it_lies() -> None:
    attaching = Attaching()
    attaching.dial()
    attaching.go_on()
    (segment,) = attaching.cluster.core.state.segments.values()
    assert [obj.key for obj in segment.residents] == [key(number) for number in reversed(range(COUNT))]


@pytest.mark.parametrize("adopted", [0, 1, 5, COUNT])
def test_a_stream_that_breaks_in_between_leaves_nothing_half_done(adopted: int) -> None:
    attaching = Attaching()
    attaching.dial()
    attaching.go_on(until_adopted=adopted)
    attaching.cluster.step(m.Broken(attaching.stream))
    attaching.cluster.step(m.Tick())  # what it had put off is nobody's any more
    attaching.dial(epoch=7)
    attaching.go_on()
    assert attaching.found() == list(range(COUNT))
    assert attaching.adopted == COUNT
    assert attaching.cluster.core.state.counters.dropped_claims == 0


def test_what_lies_between_the_claims_is_free_once_it_has_rested() -> None:
    attaching = Attaching()
    attaching.dial(claims(skip=4))
    attaching.go_on()
    (segment,) = attaching.cluster.core.state.segments.values()
    free = 16 * KIB - len(claims(skip=4)) * KIB
    assert (segment.allocator.free_bytes, segment.quarantined_bytes) == (0, free)
    attaching.cluster.pass_time(SLOWLY.write_ttl_ms + SLOWLY.late_write_ms)
    assert (segment.allocator.free_bytes, segment.quarantined_bytes) == (free, 0)


def test_a_claim_to_an_impossible_place_is_dropped() -> None:
    attaching = Attaching()
    attaching.dial([m.HeldCopy(b"k", 1, KIB, 1, 0, 1, 100, KIB, 9, 0), *claims()[2:]])
    attaching.go_on()
    assert attaching.found() == list(range(2, COUNT))
    assert attaching.cluster.core.state.counters.dropped_claims == 1


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_key_that_is_removed_meanwhile_does_not_come_back(when: str) -> None:
    """One copy is known already, and the remove is answered when that is gone; the other is claimed afterwards."""
    attaching = Attaching()
    cluster = attaching.cluster
    cluster.step(m.Hello(1, "n1", 1, 3, "h1", [cluster.infos[1]]))
    own = next(iter(cluster.core.state.segments))
    cluster.step(m.Inventory(1, [claims()[COUNT - 1]._replace(segment=own)]))
    cluster.step(m.InventoryEnd(1))
    while cluster.core.state.nodes["n1"].phase is Phase.ATTACHING:
        cluster.step(m.Tick())

    def remove() -> None:
        call = cluster.call()
        cluster.step(m.Remove(call, call.to_bytes(16, "big"), [key(COUNT - 1)]))
        assert cluster.answers[call] == m.Removed([Result.OK])

    if when == "during":
        attaching.dial()
        attaching.go_on(until_adopted=2)
        remove()
    else:
        cluster.step(m.Hello(2, "n0", 1, 3, "h0", [cluster.infos[0]]))
        remove()
        cluster.step(m.Broken(2))
        attaching.dial(epoch=7)
    attaching.go_on()
    assert attaching.found() == list(range(COUNT - 1))
    assert not cluster.core.state.absences._away


def test_what_is_dropped_before_its_claim_is_looked_at_is_forgotten_there() -> None:
    attaching = Attaching()
    attaching.dial()
    attaching.go_on()
    attaching.cluster.step(m.Broken(attaching.stream))
    attaching.dial(epoch=7)  # the same: all are known
    for _ in range(COUNT // 2 + 1):
        attaching.cluster.step(m.Tick())  # the inventory is sorted; whether it has what is known is looked at next
    call = attaching.cluster.call()
    attaching.cluster.step(m.Remove(call, call.to_bytes(16, "big"), [key(0), key(COUNT - 1)]))
    attaching.go_on()
    assert attaching.found() == list(range(1, COUNT - 1))
    forgets = [effect for effect in attaching.cluster.sent if isinstance(effect, m.Forget)]
    forgotten = {write_id for effect in forgets for _, _, write_id in effect.extents}
    assert forgotten == {100, 100 - COUNT + 1}
    attaching.cluster.pass_time(SLOWLY.lease_ms)
    (segment,) = attaching.cluster.core.state.segments.values()
    assert segment.live_bytes == (COUNT - 2) * KIB
    assert attaching.cluster.core.state.counters.lost_objects == 0


def test_a_copy_that_its_node_no_longer_has_is_made_again() -> None:
    cluster = Cluster(nodes=3)
    cluster.put(b"k", KIB, 2)
    (part,) = cluster.core.state.objects[b"k"].slices
    holder = cluster.core.state.segments[part.copies[0].segment].node
    number = int(holder.node_id[1:])
    cluster.step(m.Broken(number + 1))
    cluster.attach(number, stream=20, epoch=7)
    assert cluster.core.state.counters.lost_copies == 1
    cluster.pass_time(1000)
    assert len(part.copies) == 2
    assert cluster.core.state.counters.repaired_copies == 1
