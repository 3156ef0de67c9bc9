"""The parent of --workers processes that serve on one port: starts them, restarts those that die, ends them together.

Each worker is a fresh process with its own sockets on the port (SO_REUSEPORT), among which the system spreads the
connections; one that dies takes its connections with it, and new ones go to the others. The parent serves nothing. It
keeps the port, the workers' private directory, and a pipe to each: when the pipe closes a worker knows that its parent
is gone, and ends too.
"""

import asyncio
import contextlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from larder.errors import LarderError
from pydantic import SecretStr

from services.proxy.app import DRAIN_S
from services.proxy.config import ProxySettings
from services.proxy.server import bind, ready_line
from services.proxy.siblings import is_alive

logger = logging.getLogger(__name__)

_START_S: Final = 60.0
_PAUSE_S: Final = 0.1  # before a dead worker is restarted; twice as long each time, up to
_PAUSE_MAX_S: Final = 10.0
_STEADY_S: Final = 30.0  # after a life this long the pause is the first one again
_ASK_EVERY_S: Final = 2.0  # it waits 1 s for each answer
_MISSES_MAX: Final = 7  # in a row, until a worker counts as hung: about 20 s
_END_S: Final = DRAIN_S + 5.0


class WorkerFailed(LarderError):
    """A worker did not start."""


async def supervise(settings: ProxySettings, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    """Until stop is set and the workers have drained. Ready is told the line that announces that all of them serve."""
    for each in await bind(settings.host, settings.port):  # or it would share another proxy's port
        each.close()
    with contextlib.ExitStack() as undo:
        for each in await bind(settings.host, settings.port, shared=True):
            undo.enter_context(each)
            port = each.getsockname()[1]
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="larder-proxy-")))
        workers = _Workers(_settings_of_each(settings, port, directory), directory, settings.workers)
        try:
            if await workers.start(stop):
                ready(ready_line(settings.host, port))
                await stop.wait()
        finally:
            await workers.end()


def _settings_of_each(settings: ProxySettings, port: int, directory: Path) -> ProxySettings:
    return settings.model_copy(
        update={
            "port": port,
            "max_concurrency": -(-settings.max_concurrency // settings.workers),
            "max_queue": -(-settings.max_queue // settings.workers),
            "state_file": settings.state_file or directory / "state.json",
        }
    )


class _Workers:
    def __init__(self, settings: ProxySettings, directory: Path, count: int) -> None:
        self._settings = _revealed(settings)
        self._directory = directory
        self._count = count
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self, stop: asyncio.Event) -> bool:
        """Returns True when all of them serve, False if it was stopped before. Raises WorkerFailed."""
        starting = asyncio.create_task(self._start_all())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if starting.done():
            starting.result()
            return True
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return False

    async def end(self) -> None:
        """SIGTERM to all, time to drain, SIGKILL to those that remain."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        try:
            async with asyncio.timeout(_END_S):
                await asyncio.gather(*(process.wait() for process in self._processes.values()))
        except TimeoutError:
            for index, process in self._processes.items():
                if process.returncode is None:
                    logger.error("worker %d did not end within %g s and is killed", index, _END_S)
                    process.kill()
                    await process.wait()

    async def _start_all(self) -> None:
        await self._start_first(0)  # alone, so that wrong settings are reported once
        await asyncio.gather(*(self._start_first(index) for index in range(1, self._count)))
        self._keepers = [asyncio.create_task(self._keep(index)) for index in range(self._count)]

    async def _start_first(self, index: int) -> None:
        if not await self._start(index):
            raise WorkerFailed(f"worker {index} did not start")

    async def _start(self, index: int) -> bool:
        """Whether it serves; if not, it has ended or is killed."""
        process = self._processes[index] = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "services.proxy.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a worker has no pipes")
        orders = {"settings": self._settings, "directory": str(self._directory), "index": index, "count": self._count}
        try:
            async with asyncio.timeout(_START_S):
                process.stdin.write(json.dumps(orders).encode() + b"\n")
                await process.stdin.drain()
                if await process.stdout.readline():
                    return True
        except ConnectionError:
            pass
        except TimeoutError:
            logger.error("worker %d was not ready within %g s and is killed", index, _START_S)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        return False

    async def _until_end(self, index: int) -> int:
        """Its exit status. A worker that hangs is killed, since it would keep its share of the clients."""
        process, misses = self._processes[index], 0
        while True:
            try:
                async with asyncio.timeout(_ASK_EVERY_S):
                    return await process.wait()
            except TimeoutError:
                misses = 0 if await is_alive(self._directory, index) else misses + 1
            if misses >= _MISSES_MAX and process.returncode is None:
                logger.error("worker %d did not answer %d times in a row and is killed", index, misses)
                process.kill()

    async def _keep(self, index: int) -> None:
        pause_s = _PAUSE_S
        while True:
            began = time.monotonic()
            status = await self._until_end(index)
            if time.monotonic() - began > _STEADY_S:
                pause_s = _PAUSE_S
            logger.error("worker %d ended with status %d; it is restarted in %g s", index, status, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)
            try:
                if await self._start(index):
                    logger.info("worker %d serves again", index)
            except OSError:
                logger.exception("worker %d cannot be started", index)


def _revealed(settings: ProxySettings) -> dict[str, Any]:
    """As JSON, keys and all: it goes through a pipe that nobody else reads."""
    keys = {name: value.get_secret_value() for name, value in settings if isinstance(value, SecretStr)}
    return settings.model_dump(mode="json") | keys
