"""The link to the store: work on its own thread, and a store that does not answer is left alone for a while."""

import asyncio
import logging
from concurrent.futures import CancelledError
from typing import Any

import pytest
from larder.errors import DataLost, StoreClosed, Unavailable
from larder.vllm.link import BACK_OFF_S, StoreLink


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_work_runs_on_another_thread_and_the_store_is_connected_once(link: StoreLink, store: Any) -> None:
    store.objects[b"k"] = b"v"
    first, second = (link.call(lambda s: s.exists([b"k", b"m"])) for _ in range(2))
    assert first.result(5) == second.result(5) == [True, False]
    assert link.up
    assert link.ready()


def test_a_store_that_does_not_answer_is_left_alone_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    clock, tries = Clock(), 0

    async def connect() -> Any:
        nonlocal tries
        tries += 1
        raise Unavailable("nobody listens")

    link = StoreLink(connect, clock=clock)
    try:
        with caplog.at_level(logging.WARNING, "vllm.larder"):
            for _ in range(2):
                with pytest.raises(Unavailable):
                    link.call(lambda s: s.match([b"k"])).result(5)
        assert not link.up
        assert not link.ready()
        clock.now += BACK_OFF_S
        assert link.ready()
        assert tries == 2
        assert [r.message for r in caplog.records if "does not answer" in r.message].__len__() == 1
    finally:
        link.close()


def test_a_store_that_answers_again_is_named_once(
    link: StoreLink, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vllm.larder"):
        link.open()
        store.fail = Unavailable("gone")
        with pytest.raises(Unavailable):
            link.call(lambda s: s.match([b"k"])).result(5)
        store.fail = None
        for _ in range(2):
            assert link.call(lambda s: s.match([b"k"])).result(5) == 0
    assert link.up
    assert [r.message for r in caplog.records][1:] == ["Larder answers again"]


def test_an_error_of_one_object_is_no_reason_to_leave_the_store_alone(link: StoreLink, store: Any) -> None:
    store.fail = DataLost("one object")
    with pytest.raises(DataLost):
        link.call(lambda s: s.match([b"k"])).result(5)
    assert link.up


def test_a_connection_that_hangs_is_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect() -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr("larder.vllm.link.CONNECT_S", 0.05)
    link = StoreLink(connect)
    try:
        with pytest.raises(Unavailable, match="cannot connect: TimeoutError"):
            link.call(lambda s: s.match([b"k"])).result(5)
        assert not link.ready()
    finally:
        link.close()


def test_a_late_answer_is_no_reason_to_leave_the_store_alone(link: StoreLink) -> None:
    async def late(_: Any) -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        link.call(late).result(5)
    assert link.up


def test_closing_ends_what_is_under_way_and_refuses_what_comes(link: StoreLink, store: Any) -> None:
    link.call(lambda s: s.match([])).result(5)

    async def forever(_: Any) -> None:
        await asyncio.Event().wait()

    waiting = link.call(forever)
    link.close()
    with pytest.raises(CancelledError):
        waiting.result(5)
    with pytest.raises(StoreClosed):
        link.call(forever).result(5)
    assert store.closed
    assert not link.ready()
    link.close()
