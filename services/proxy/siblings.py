"""What the workers of one proxy tell each other, by HTTP over Unix sockets in a directory of their own (mode 0700).

A worker that is not there is passed over: it reads the state file when it starts. One that is there and does not answer
in time counts as silent: it will do as told when it can, and until then its share is unknown.
"""

import asyncio
import errno
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from services.proxy.core.engine import Role
from services.proxy.core.membership import Found
from services.proxy.sums import Family, Samples, exposition, kept, merged

ANSWER_S: Final = 1.0
_WORKERS: Final = "larder_proxy_workers"
_FOUND: Final = "found.json"


@dataclass(frozen=True, slots=True)
class Heard:
    """What the siblings answered, by index; None: silent."""

    answers: dict[int, Any]

    @property
    def silent(self) -> int:
        return sum(answer is None for answer in self.answers.values())


@dataclass(frozen=True, slots=True)
class WorkerSlot:
    """Worker `index` of `count`, and the directory they share."""

    directory: Path
    index: int
    count: int


class Siblings:
    def __init__(self, slot: WorkerSlot, registry: CollectorRegistry) -> None:
        self._directory = slot.directory
        self._index = slot.index
        self.count = slot.count
        self._samples = Samples(registry, self._kept(self._index))
        self._runner: web.AppRunner | None = None

    async def serve(
        self,
        *,
        reload: Callable[[], None],
        instances: Callable[[], list[dict[str, Any]]],
        home: Callable[[str], str | None],
    ) -> None:
        """From now on the others are answered."""

        async def post_reload(_: web.Request) -> web.Response:
            reload()
            return web.json_response({})

        async def get_instances(_: web.Request) -> web.Response:
            return web.json_response(instances())

        async def get_home(request: web.Request) -> web.Response:
            return web.json_response(home(request.query["id"]))

        async def get_alive(_: web.Request) -> web.Response:
            return web.json_response({})

        async def get_samples(_: web.Request) -> web.Response:
            return web.json_response(self._samples.take())

        app = web.Application()
        app.add_routes([web.post("/reload", post_reload)])
        app.add_routes([web.get("/instances", get_instances), web.get("/samples", get_samples)])
        app.add_routes([web.get("/alive", get_alive), web.get("/home", get_home)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=ANSWER_S)
        await self._runner.setup()
        socket = _socket(self._directory, self._index)
        socket.unlink(missing_ok=True)  # a predecessor's
        await web.UnixSite(self._runner, socket).start()

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def is_first(self) -> bool:
        """The first one finds engines for all."""
        return self._index == 0

    def find(self, found: Found) -> None:
        """Leaves it for reload() to take up. It outlives this worker."""
        new = self._directory / "found.new"
        new.write_text(json.dumps(found))
        new.replace(self._directory / _FOUND)

    def found(self) -> Found:
        """What the first worker found last."""
        try:
            content = json.loads((self._directory / _FOUND).read_text())
        except FileNotFoundError:
            return {}
        return {Role(role): tuple(addresses) for role, addresses in content.items()}

    async def reload(self) -> int:
        """Has the others take up the state file and what was found; returns how many were silent."""
        return (await self._ask_all("POST", "/reload")).silent

    async def instances(self) -> Heard:
        return await self._ask_all("GET", "/instances")

    async def home(self, id: str) -> str | None:
        """The engine that made the response of that id, if one of them knows."""
        heard = await self._ask_all("GET", f"/home?id={quote(id, safe='')}")
        return next((answer for answer in heard.answers.values() if isinstance(answer, str)), None)

    async def metrics(self) -> bytes:
        """Those of all workers together, in Prometheus's text format; of silent workers, what they last showed."""
        heard = await self._ask_all("GET", "/samples")
        samples = [[_WORKERS, {}, 1 + len(heard.answers) - heard.silent]]
        workers = [_WORKERS, "gauge", "Workers that answered; gauges of others are missing", samples]
        parts: list[list[Family]] = [[workers], self._samples.take()]
        for index in self._others():
            answer = heard.answers.get(index)
            parts.append(kept(self._kept(index)) if answer is None else answer)
        return exposition(merged(parts))

    async def _ask_all(self, method: str, path: str) -> Heard:
        others = self._others()
        answers = await asyncio.gather(*(_ask(_socket(self._directory, each), method, path) for each in others))
        return Heard({index: answer for index, (there, answer) in zip(others, answers, strict=True) if there})

    def _others(self) -> list[int]:
        return [index for index in range(self.count) if index != self._index]

    def _kept(self, index: int) -> Path:
        return self._directory / f"worker-{index}.samples"


async def is_alive(directory: Path, index: int) -> bool:
    """Whether that worker answers."""
    return (await _ask(_socket(directory, index), "GET", "/alive"))[1] is not None


async def _ask(socket: Path, method: str, path: str) -> tuple[bool, Any]:
    """Whether a worker is there, and its answer; None if it gives none."""
    try:
        async with (
            asyncio.timeout(ANSWER_S),
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(socket))) as session,
            session.request(method, f"http://worker{path}") as response,
        ):
            return True, await response.json() if response.status == 200 else None
    except aiohttp.ClientConnectorError as error:  # else it is there, and has no room for us, or we have none ourselves
        return error.os_error.errno not in (errno.ENOENT, errno.ECONNREFUSED), None
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return True, None


def _socket(directory: Path, index: int) -> Path:
    return directory / f"worker-{index}.sock"
