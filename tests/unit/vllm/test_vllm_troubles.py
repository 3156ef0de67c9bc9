"""What fails is said in one line: how much, of how much, and why; more often only when it is due."""

import logging
from collections.abc import Callable

import pytest
from larder.vllm.troubles import SAY_EVERY_S, Troubles


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "vllm.larder")

    def take() -> list[str]:
        said = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return said

    return take


def test_the_first_is_said_at_once_and_what_follows_together(lines: Callable[[], list[str]]) -> None:
    clock = Clock()
    troubles = Troubles(clock)
    troubles.note("were not loaded", [], 30)
    troubles.say()
    assert lines() == []
    troubles.note("were not loaded", ["gone"] * 2, 10)
    troubles.say()
    assert lines() == ["Larder: 2 of 40 objects were not loaded: gone"]
    for _ in range(100):
        troubles.note("were not loaded", ["corrupt", "gone", "gone"], 5)
        troubles.note("were not saved", ["no room"], 1)
        troubles.say()
    assert lines() == []
    clock.now += SAY_EVERY_S
    troubles.say()
    assert lines() == [
        "Larder: 300 of 500 objects were not loaded: gone (200 of them)",
        "Larder: 100 of 100 objects were not saved: no room",
    ]
    clock.now += SAY_EVERY_S
    troubles.say()
    assert lines() == []


def test_the_last_are_said_in_any_case(lines: Callable[[], list[str]]) -> None:
    troubles = Troubles(Clock())
    troubles.note("were not saved", ["a"], 1)
    troubles.say()
    troubles.note("were not saved", ["b"], 1)
    troubles.say(last=True)
    assert lines() == ["Larder: 1 of 1 objects were not saved: a", "Larder: 1 of 1 objects were not saved: b"]


def test_a_long_reason_is_cut(lines: Callable[[], list[str]]) -> None:
    troubles = Troubles(Clock())
    troubles.note("were not saved", ["x" * 10_000], 1)
    troubles.say()
    assert len(lines()[0]) < 400
