"""The checker, on histories made up here: each rule finds what it is there for, and forgives what it has to."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import history, values
from tests.chaos.checker import check
from tests.chaos.history import ERROR, MISS, OK, History, Op, Outage, Recorder, Sample


def op(kind: str, begin: float, end: float, **facts: Any) -> Op:
    return Op(kind, facts.pop("key", "k"), begin, end, **{"client": "c", "outcome": OK} | facts)


def put(begin: float, end: float, number: int = 1, copies: int = 2, **facts: Any) -> Op:
    return op("put", begin, end, **{"number": number, "wanted": 2, "copies": copies} | facts)


def got(begin: float, end: float, number: int = 1, **facts: Any) -> Op:
    return op("get", begin, end, number=number, **facts)


def missed(begin: float, end: float, **facts: Any) -> Op:
    return op("get", begin, end, outcome=MISS, **facts)


def failed(kind: str, begin: float, end: float, error: str = "Unavailable", **facts: Any) -> Op:
    return op(kind, begin, end, outcome=ERROR, error=error, **facts)


def kill(node: str, begin: float, end: float) -> Outage:
    return Outage("node kill", node, begin, end, fatal=True)


def rules(*ops: Op, **facts: Any) -> list[str]:
    return [violation.rule for violation in check(History(list(ops), **facts))]


DURING = [Outage("client cut", "client-9", 0, 100)]  # of somebody else: nothing has to be normal


def test_what_has_to_be_is_no_violation() -> None:
    life = [put(0, 1), got(2, 3), op("seen", 3, 3.5), op("remove", 4, 5), missed(6, 7), put(8, 9, 2), got(10, 11, 2)]
    assert rules(*life) == []


@pytest.mark.parametrize(
    "wrong",
    [
        failed("get", 2, 3, "Wrong"),
        got(2, 3, number=7),  # nobody put that
        got(2, 3, number=5),  # not yet begun
        got(2, 3, number=9),  # of another key
    ],
)
def test_wrong_bytes(wrong: Op) -> None:
    assert rules(put(0, 1), wrong, put(4, 5, 5), put(0, 1, 9, key="other"), outages=DURING) == ["wrong"]


@pytest.mark.parametrize("sight", [got(4, 5), op("seen", 4, 5)])
def test_what_was_removed_does_not_rise(sight: Op) -> None:
    assert rules(put(0, 1), op("remove", 2, 3), sight) == ["risen"]
    assert rules(put(0, 1), op("remove", 2, 3, outcome=MISS), sight) == ["risen"]
    assert rules(put(1, 2.5), op("remove", 2, 3), sight) == []  # either may have been first
    assert rules(put(0, 1), op("remove", 3, 4.5), sight) == []
    assert rules(put(0, 1), failed("remove", 2, 3), sight, outages=DURING) == []
    assert rules(failed("put", 0, 1, number=1), op("remove", 2, 3), sight, outages=DURING) == []  # it may land late


def test_a_put_that_failed_lands_within_its_life_or_never() -> None:
    facts = {"outages": DURING, "wholes": [10.0]}
    life = [failed("put", 0, 1, number=1), op("remove", 40, 41)]
    assert rules(*life, got(35, 36), **facts) == []
    assert rules(*life, got(50, 51), **facts) == ["risen"]


def test_what_was_acknowledged_is_there() -> None:
    assert rules(put(0, 1), missed(2, 3)) == ["lost"]
    assert rules(put(0, 1), op("seen", 2, 3, outcome=MISS)) == ["lost"]
    assert rules(put(0, 1), failed("get", 2, 3, "DataLost"), outages=DURING) == ["lost"]
    assert rules(put(1, 2.5), missed(2, 3)) == []  # not yet
    assert rules(put(0, 1), op("remove", 2.5, 4), missed(2, 3)) == []  # no more
    assert rules(put(0, 1), failed("remove", 1, math.inf), missed(5, 6), outages=DURING) == []  # perhaps no more
    assert rules(put(0, 1), op("remove", 2, 3), put(4, 5, 2), missed(6, 7)) == ["lost"]
    assert rules(put(0, 1, existed=True, copies=0), missed(2, 3)) == []  # whose it was, and how many copies, is unknown


def test_a_removal_that_cannot_happen_any_more_excuses_nothing() -> None:
    life = [failed("remove", 0, 1), put(40, 41), missed(42, 43)]
    assert rules(*life, outages=DURING, wholes=[10.0]) == ["lost"]
    assert rules(*life, outages=DURING, wholes=[30.0]) == []


def test_a_miss_is_excused_when_all_holders_are_away() -> None:
    both = [Outage("node stop", "node-1", 2, 5), Outage("node cut", "node-2", 3, 4)]
    assert rules(put(0, 1), missed(4, 4.5), outages=both) == []
    assert rules(put(0, 1), missed(4, 4.5), outages=both[:1]) == ["lost"]
    assert rules(put(0, 1, copies=1, wanted=1), missed(4, 4.5), outages=both[:1]) == []
    assert rules(put(0, 1, copies=3), missed(4, 4.5), outages=both) == ["lost"]
    assert rules(put(0, 1), missed(30, 31), outages=both) == ["lost"]  # they are back


def test_a_loss_is_excused_when_all_holders_died_before_they_were_made_again() -> None:
    one, other = kill("node-1", 2, 5), kill("node-2", 10, 12)
    assert rules(put(0, 1), missed(30, 31), outages=[one, other]) == []
    assert rules(put(0, 1), missed(30, 31), outages=[one, other], wholes=[20.0]) == []
    assert rules(put(0, 1), missed(30, 31), outages=[one, other], wholes=[7.0, 20.0]) == ["lost"]
    assert rules(put(6, 7), missed(30, 31), outages=[one, other], wholes=[20.0]) == ["lost"]  # the first came before it
    away = Outage("node stop", "node-2", 3, 8)
    assert rules(put(0, 1), missed(4, 5), outages=[one, away]) == []
    assert rules(put(0, 1), missed(30, 31), outages=[one, away]) == ["lost"]  # it held the bytes all the time


def test_evictions_excuse_as_many_as_there_were() -> None:
    ops = [each for key in "ab" for each in (put(0, 1, key=key, number=ord(key)), missed(5, 6, key=key))]
    assert rules(*ops, samples=[Sample(0, 0), Sample(7, 2)]) == []
    assert rules(*ops, samples=[Sample(0, 0), Sample(7, 1)]) == ["lost"]
    assert rules(*ops, samples=[Sample(-1, 2), Sample(7, 2)]) == ["lost", "lost"]  # all before


@pytest.mark.parametrize(
    "strange", [failed("get", 11, 12), failed("put", 11, 12), got(11, 14), put(11, 12, 2, copies=1), put(11, 14, 2)]
)
def test_all_is_normal_so_long_after_a_heal(strange: Op) -> None:
    ops = (put(0, 1), strange, got(19, 20, number=1))
    assert rules(*ops) == ["abnormal"]
    assert rules(*ops, outages=[Outage("client stop", "client-9", 3, 5)]) == ["abnormal"]
    assert rules(*ops, outages=[Outage("client stop", "client-9", 3, 7)]) == []  # not yet
    assert rules(*ops, outages=[Outage("client stop", "client-9", 13, 15)]) == (
        [] if strange.end > 13 else ["abnormal"]
    )


def test_a_call_that_does_not_end_is_not_normal() -> None:
    stuck = [put(0, 1), put(12, 20, 2, key="x"), got(3, math.inf)]
    outages = [Outage("client stop", "client-9", 2, 5)]
    assert rules(*stuck[:2], outages=outages) == ["abnormal"]
    assert rules(*stuck[::2], got(19, 20), outages=outages) == ["abnormal"]
    assert rules(*stuck[::2], got(19, 20), outages=[*outages, Outage("client kill", "c", 4, 5)]) == []
    assert rules(*stuck[::2], got(19, 20), outages=[*outages, Outage("client kill", "c", 2.9, 5)]) == []  # not at once


def test_processes_that_end_by_themselves_are_violations() -> None:
    assert rules(put(0, 1), unexpected=["node-1 has ended"]) == ["unexpected"]


def test_a_history_survives_the_death_of_its_writer(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "history", "c")
    with recorder.op("put", "k", number=3) as done:
        done.outcome, done.copies = OK, 2
    with pytest.raises(KeyboardInterrupt), recorder.ops("put", ["k"], [4]):
        raise KeyboardInterrupt
    with (tmp_path / "history").open("ab") as file:
        file.write(b'[9, [{"kind": "get"')
    first, second = history.read(tmp_path / "history")
    assert (first.outcome, first.copies, first.number, first.client) == (OK, 2, 3, "c")
    assert first.end < math.inf
    assert (second.kind, second.number, second.end) == ("put", 4, math.inf)


@pytest.mark.parametrize("size", [64, 100, 4096])
def test_values_say_whose_they_are(size: int) -> None:
    data = values.value(b"k", 3, seed=1, size=size)
    assert values.read(b"k", data, seed=1) == 3
    for other in (values.value(b"x", 3, seed=1, size=size), values.value(b"k", 3, seed=2, size=size), data[:-1]):
        with pytest.raises(values.Wrong):
            values.read(b"k", other, seed=1)
    for place in {0, 63, size // 2, size - 1}:
        torn = bytearray(data)
        torn[place] ^= 1
        with pytest.raises(values.Wrong):
            values.read(b"k", bytes(torn), seed=1)
