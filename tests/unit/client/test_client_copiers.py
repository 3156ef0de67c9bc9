"""The copy threads: every work is done once and to its end, whoever does it, and whoever gives up meanwhile."""

import asyncio
import threading

import pytest
from larder.transports.copiers import Copiers


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
async def test_results_come_in_order(count: int, short: bool) -> None:
    copiers = Copiers()
    done: list[int] = []

    def work(number: int) -> int:
        done.append(number)
        return 2 * number

    assert await copiers.run([lambda n=n: work(n) for n in range(count)], short=short) == [2 * n for n in range(count)]
    assert sorted(done) == list(range(count))
    copiers.close()


@pytest.mark.parametrize("short", [False, True])
async def test_a_cancelled_run_begins_nothing_more_and_waits_for_what_it_began(short: bool) -> None:
    copiers = Copiers()
    gate, begun = threading.Event(), threading.Event()
    finished: list[int] = []
    loop_thread = threading.get_ident()

    def work(number: int) -> None:
        if threading.get_ident() != loop_thread:
            begun.set()
            gate.wait(10)
            finished.append(number)

    run = asyncio.create_task(copiers.run([lambda n=n: work(n) for n in range(100_000)], short=short))
    await asyncio.to_thread(begun.wait, 10)
    run.cancel()
    await asyncio.sleep(0.05)
    assert not run.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert 1 <= len(finished) <= 4
    copiers.close()


@pytest.mark.parametrize("short", [False, True])
async def test_a_work_that_fails_fails_the_run(short: bool) -> None:
    copiers = Copiers()

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await copiers.run([fail] * 3, short=short)
    copiers.close()
