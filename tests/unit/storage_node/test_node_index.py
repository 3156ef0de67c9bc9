"""The node's index, against hand-made cases and against a model that compares every byte with every other."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.common.held import HeldCopy
from services.storage_node.core.index import DONE, Index, Outcome, Place

DRAM = 0


def a_copy(**changes: Any) -> HeldCopy:
    given = HeldCopy(
        key=b"key", write_id=1, object_size=64, slice_count=1, slice_index=0,
        segment=DRAM, offset=0, length=64, checksum=99, depth=2,
    )  # fmt: skip
    return given._replace(**changes)


def place_of(copy: HeldCopy) -> Place:
    return Place(copy.segment, copy.offset, copy.write_id)


def held(index: Index) -> list[HeldCopy]:
    return [copy for chunk in index.inventory(2) for copy in chunk]


def test_what_is_recorded_is_in_the_inventory_in_chunks() -> None:
    index = Index([1024])
    copies = [a_copy(key=bytes([n]), write_id=n, offset=n * 64) for n in range(5)]
    assert index.record(1, copies[3:]) is DONE
    assert index.record(1, copies[:3]) is DONE
    assert [len(chunk) for chunk in index.inventory(2)] == [2, 2, 1]
    assert held(index) == copies
    assert (len(index), index.copies_in(DRAM), index.held_bytes) == (5, 5, [320])
    index.check()


def test_an_inventory_is_what_was_held_when_it_began() -> None:
    index = Index([1024])
    copies = [a_copy(write_id=n, offset=n * 64) for n in range(4)]
    index.record(1, copies)
    chunks = index.inventory(2)
    first = next(chunks)
    index.forget(1, [place_of(copies[3])])
    assert first + next(chunks) == copies


def test_a_repeated_record_finds_its_copy_whatever_is_left_of_its_life() -> None:
    index = Index([1024])
    assert index.record(1, [a_copy(expires_ms=1000)]).outcome is Outcome.DONE
    assert index.record(2, [a_copy(expires_ms=1003)]).outcome is Outcome.DONE
    assert held(index) == [a_copy(expires_ms=1000)]


def test_a_repeated_command_changes_nothing_more() -> None:
    index = Index([1024])
    assert index.record(1, [a_copy()]) is DONE
    assert index.record(1, [a_copy()]) is DONE
    assert (held(index), index.held_bytes) == ([a_copy()], [64])
    for _ in range(2):
        assert index.forget(1, [place_of(a_copy())]) is DONE
        assert (held(index), index.held_bytes) == ([], [0])


@pytest.mark.parametrize("place", [Place(DRAM, 0, 2), Place(DRAM, 64, 1), Place(DRAM, 1, 1), Place(7, 0, 1)])
def test_forgetting_what_is_not_held_is_done_without_effect(place: Place) -> None:
    index = Index([1024])
    index.record(1, [a_copy()])
    assert index.forget(1, [place]) is DONE
    assert held(index) == [a_copy()]


def test_an_old_epoch_is_refused_and_changes_nothing() -> None:
    index = Index([1024])
    index.record(5, [a_copy()])
    assert index.record(4, [a_copy(offset=64)]).outcome is Outcome.OLD_EPOCH
    assert index.forget(4, [place_of(a_copy())]).outcome is Outcome.OLD_EPOCH
    assert index.obey(4).outcome is Outcome.OLD_EPOCH
    assert (index.epoch, held(index)) == (5, [a_copy()])
    assert index.obey(6) is DONE
    assert index.record(5, [a_copy(offset=64)]).outcome is Outcome.OLD_EPOCH


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        (a_copy(write_id=2), "overlap"),
        (a_copy(checksum=1), "overlap"),  # the same place and put, but other bytes
        (a_copy(key=b"other", offset=63), "overlap"),
        (a_copy(key=b"other", offset=0, length=1), "overlap"),
        (a_copy(offset=1024 - 63), "out of bounds"),
        (a_copy(offset=-1), "out of bounds"),
        (a_copy(offset=512, length=0), "out of bounds"),
        (a_copy(segment=1, offset=512), "segment 1 is not on this node"),
        (a_copy(offset=512, slice_index=1), "slice 1 of an object of 1 slices"),
        (a_copy(offset=512, key=b""), "a key of 0 bytes"),
        (a_copy(offset=512, key=bytes(1025)), "a key of 1025 bytes"),
    ],
)
def test_a_claim_that_cannot_be_true_rejects_its_whole_command(claim: HeldCopy, reason: str) -> None:
    index = Index([1024])
    index.record(1, [a_copy()])
    good = a_copy(key=b"good", offset=128)
    answer = index.record(1, [good, claim])
    assert answer.outcome is Outcome.REJECTED
    assert reason in answer.reason
    assert (held(index), index.held_bytes) == ([a_copy()], [64])
    index.check()
    assert index.record(1, [good]) is DONE


def test_two_claims_of_one_command_may_not_overlap_either() -> None:
    index = Index([1024])
    assert index.record(1, [a_copy(), a_copy(key=b"other", offset=32)]).outcome is Outcome.REJECTED
    assert held(index) == []


def test_a_rejected_command_leaves_what_it_repeated() -> None:
    index = Index([1024])
    index.record(1, [a_copy()])
    assert index.record(1, [a_copy(), a_copy(offset=2000)]).outcome is Outcome.REJECTED
    assert held(index) == [a_copy()]


def test_check_finds_an_overlap() -> None:
    index = Index([1024])
    index.record(1, [a_copy()])
    index._copies[0][32] = a_copy(offset=32)
    with pytest.raises(AssertionError, match="overlaps"):
        index.check()


CAPACITIES = [16, 8]  # tiny, so that claims collide


class AgainstModel(RuleBasedStateMachine):
    """The model: a set of copies; each rule compares a claim with every copy in it, byte by byte."""

    @initialize()
    def begin(self) -> None:
        self.index = Index(CAPACITIES)
        self.epoch = 0
        self.held: set[HeldCopy] = set()

    claims = st.builds(
        a_copy,
        key=st.sampled_from([b"a", b"b"]),
        write_id=st.integers(1, 2),
        segment=st.integers(0, 2).map(int),
        offset=st.integers(-1, 16),
        length=st.integers(0, 6),
    )
    epochs = st.integers(1, 4)

    @rule(epoch=epochs, claims=st.lists(claims, min_size=1, max_size=3))
    def record(self, epoch: int, claims: list[HeldCopy]) -> None:
        expected = self._expected(epoch)
        after = set(self.held)
        for claim in claims if expected is Outcome.DONE else []:
            if not self._can_be_true(claim, after):
                expected, after = Outcome.REJECTED, self.held
                break
            after.add(claim)
        assert self.index.record(epoch, claims).outcome is expected
        self.held = after

    @rule(epoch=epochs, data=st.data())
    def forget(self, epoch: int, data: st.DataObject) -> None:
        some_held = [st.sampled_from(sorted(map(place_of, self.held), key=repr))] if self.held else []
        any_place = st.builds(Place, st.integers(0, 2).map(int), st.integers(0, 16), st.integers(1, 2))
        places = data.draw(st.lists(st.one_of(*some_held, any_place), max_size=3))
        expected = self._expected(epoch)
        assert self.index.forget(epoch, places).outcome is expected
        if expected is Outcome.DONE:
            self.held = {copy for copy in self.held if place_of(copy) not in places}

    @invariant()
    def same(self) -> None:
        self.index.check()
        in_order = sorted(self.held, key=lambda copy: (copy.segment, copy.offset))
        assert held(self.index) == in_order
        assert self.index.epoch == self.epoch

    def _expected(self, epoch: int) -> Outcome:
        if epoch < self.epoch:
            return Outcome.OLD_EPOCH
        self.epoch = epoch
        return Outcome.DONE

    @staticmethod
    def _can_be_true(claim: HeldCopy, held: set[HeldCopy]) -> bool:
        def extent(copy: HeldCopy) -> set[tuple[int, int]]:
            return {(copy.segment, byte) for byte in range(copy.offset, copy.offset + copy.length)}

        pool = {(segment, byte) for segment, capacity in enumerate(CAPACITIES) for byte in range(capacity)}
        in_bounds = claim.length > 0 and extent(claim) <= pool
        return in_bounds and all(other == claim or not extent(other) & extent(claim) for other in held)


AgainstModel.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
TestAgainstModel = AgainstModel.TestCase
