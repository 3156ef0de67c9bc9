"""The link to the store: work on its own thread, and a store that does not answer is probed, not asked."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest
from larder.errors import DataLost, StoreClosed, Unavailable
from larder.vllm.link import StoreLink


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.002)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("larder.vllm.link.PROBE_EVERY_S", 0.02)
    monkeypatch.setattr("larder.vllm.link.PROBE_S", 0.1)


def test_work_runs_on_another_thread(link: StoreLink, store: Any) -> None:
    store.objects[b"k"] = b"v"
    assert link.call(lambda s: s.exists([b"k", b"m"])).result(5) == [True, False]


def test_a_store_counts_as_silent_until_it_answers_and_is_named_once(
    impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    tries = 0

    async def connect() -> Any:
        nonlocal tries
        tries += 1
        raise Unavailable("nobody listens")

    with caplog.at_level(logging.WARNING, "vllm.larder"):
        link = StoreLink(connect)
        try:
            until(lambda: tries > 3)
            assert not link.ready()
        finally:
            link.close()
    assert len(caplog.records) == 1
    assert "does not answer, the engine goes on without it: nobody listens" in caplog.text


def test_a_connection_that_hangs_is_a_store_that_does_not_answer(
    impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    async def connect() -> Any:
        await asyncio.Event().wait()

    with caplog.at_level(logging.WARNING, "vllm.larder"):
        link = StoreLink(connect)
        try:
            until(lambda: caplog.records)
            assert not link.ready()
        finally:
            link.close()
    assert "without it: TimeoutError" in caplog.text


def test_a_store_that_went_is_probed_and_used_when_it_is_back(
    impatient: None, link: StoreLink, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vllm.larder"):
        store.fail = Unavailable("gone")
        for _ in range(2):
            with pytest.raises(Unavailable):
                link.call(lambda s: s.match([b"k"])).result(5)
        assert not link.ready()
        until(lambda: store.calls.count(("exists", 1)) > 3)
        store.fail = None
        until(link.ready)
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "Larder does not answer",
        "Larder answers again",
    ]


def test_a_doubt_that_was_unfounded_is_gone_at_once_and_not_logged(
    link: StoreLink, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vllm.larder"):
        link.doubt()
        until(link.ready)
    assert not caplog.records


def test_an_error_of_one_object_puts_nothing_in_doubt(link: StoreLink, store: Any) -> None:
    store.fail = DataLost("one object")
    with pytest.raises(DataLost):
        link.call(lambda s: s.match([b"k"])).result(5)
    assert link.ready()


def test_a_late_answer_puts_nothing_in_doubt(link: StoreLink) -> None:
    async def late(_: Any) -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        link.call(late).result(5)
    assert link.ready()


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


def test_a_forked_process_is_refused_at_once_and_its_parent_notices_nothing(link: StoreLink, store: Any) -> None:
    until(link.ready)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            with contextlib.suppress(Unavailable):
                link.call(lambda s: s.exists([b"k"])).result(0)
                os._exit(2)
            link.doubt()
            status = 3 if link.ready() else 0
            link.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert link.ready()
    assert link.call(lambda s: s.exists([b"k"])).result(5) == [False]
