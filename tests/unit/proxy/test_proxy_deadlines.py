"""Many deadlines and one timer: each is noticed, none early, and no other cancellation is taken for one."""

import asyncio
import time

import pytest

from services.proxy.deadlines import TICK_S, Deadlines


async def test_a_slow_block_is_cut_off() -> None:
    deadlines = Deadlines()
    began = time.monotonic()
    with pytest.raises(TimeoutError), deadlines.within(0.1):
        await asyncio.sleep(10)
    assert 0.09 <= time.monotonic() - began < 0.1 + TICK_S + 1  # the loop counts in whole milliseconds
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    with deadlines.within(10):
        await asyncio.sleep(0)
    await asyncio.sleep(2 * TICK_S)
    assert deadlines._ticking is None  # nothing is under way, so nothing ticks


async def test_of_two_deadlines_the_expired_one_counts() -> None:
    deadlines = Deadlines()
    with deadlines.within(10), pytest.raises(TimeoutError), deadlines.within(0.05):
        await asyncio.sleep(10)
    with pytest.raises(TimeoutError), deadlines.within(0.05), deadlines.within(10):
        await asyncio.sleep(10)


async def test_a_cancellation_from_elsewhere_passes_through() -> None:
    deadlines = Deadlines()
    outcomes: list[str] = []

    async def wait(seconds: float) -> None:
        try:
            with deadlines.within(seconds):
                await asyncio.sleep(10)
        except TimeoutError:
            outcomes.append("timed out")
        except asyncio.CancelledError:
            outcomes.append("cancelled")
            raise

    task = asyncio.create_task(wait(10))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    task = asyncio.create_task(wait(0))
    while not task.cancelling():  # noqa: ASYNC110 - the deadline's
        await asyncio.sleep(0)
    task.cancel()  # in the same turn of the loop
    with pytest.raises(asyncio.CancelledError):
        await task
    assert outcomes == ["cancelled"] * 2


async def test_a_block_that_ended_is_not_cancelled_later() -> None:
    deadlines = Deadlines()
    with deadlines.within(0.05):
        time.sleep(0.1)  # noqa: ASYNC251 - over, and nobody has looked
    await asyncio.sleep(2 * TICK_S)


async def test_a_deadline_may_restart_until_it_has_passed() -> None:
    deadlines = Deadlines()
    began = time.monotonic()
    limit = deadlines.within(0.2)

    async def renew() -> None:
        for _ in range(4):
            await asyncio.sleep(0.1)
            limit.restart(0.2)
        await asyncio.sleep(10)

    with pytest.raises(TimeoutError), limit:
        await renew()
    assert 0.59 <= time.monotonic() - began < 0.6 + TICK_S + 1
    limit.restart(10)
    assert limit.deadline is None
