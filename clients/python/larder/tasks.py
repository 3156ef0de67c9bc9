"""Waiting for tasks so that none is left behind, and so that no task's failure keeps memory alive.

A task holds what it failed with, that its traceback, and that the frames it went through: a frame that names the task
closes a cycle, which owns all that those frames hold, the caller's buffers too, until a collector comes by.
"""

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def unbroken(work: Awaitable[T]) -> T:
    """Awaits the end of `work` even if cancelled meanwhile, and only then raises the cancellation."""
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue  # the first one is raised below
        if not future.cancelled():
            future.exception()  # it was looked at
        raise


async def end(task: asyncio.Task[Any]) -> None:
    """Cancels a task that is still running, and returns once it has ended."""
    if not task.done():
        task.cancel()
        await unbroken(asyncio.wait([task]))
    failure(task)  # looked at: who asks for the result meets it


def failure(task: asyncio.Task[Any]) -> BaseException | None:
    """What a finished task failed with; None also if it was cancelled."""
    return None if task.cancelled() else task.exception()


async def together(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Carries out all works at once, and ends when all have ended; the first failure ends the others, and is raised."""
    if not works:
        return
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await unbroken(asyncio.wait(tasks))
    failed = list(filter(None, map(failure, tasks)))
    del tasks, task
    if failed:
        try:
            raise failed[0]
        finally:
            failed.clear()
