"""A proxy and test engines as real processes, and a load of requests on them whose every answer is checked."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from demo.cluster import free_port
from demo.processes import Process, end_all
from tests.e2e.http_engine import answer_tokens

READY_S = 30.0
ROOT = Path(__file__).parents[2]


class XpYd:
    """Engines by name, each with its own port that it keeps, and one proxy; all ended with the context."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._processes: list[Process] = []
        self.engines: dict[str, Process] = {}
        self.addresses: dict[str, str] = {}
        self.proxy: Process | None = None
        self.url = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        end_all(process for process in self._processes if process.running())

    def start_engine(self, name: str, *flags: str, wait: bool = True, server: str = "http_engine") -> str:
        """Returns its address; a name that was used before comes back on its port."""
        again = name in self.addresses
        port = self.addresses[name].rpartition(":")[2] if again else str(free_port())
        argv = [sys.executable, "-m", f"tests.e2e.{server}", "--port", port, *flags]
        process = Process(name, argv, log_dir=self._scratch, env=self._env(), again=again)
        self._processes.append(process)
        self.engines[name], self.addresses[name] = process, f"127.0.0.1:{port}"
        if wait:
            process.wait_line("engine ready", READY_S)
        return self.addresses[name]

    def start_proxy(self, prefill: list[str], decode: list[str], *flags: str, port: int = 0, **env: str) -> str:
        """Returns its URL. Engines are given by name."""
        argv = [sys.executable, "-c", "from services.proxy.cli import main; main()", "--port", str(port), *flags]
        for role, names in (("prefill", prefill), ("decode", decode)):
            argv += [f"--{role}", *(self.addresses[name] for name in names)] if names else []
        again = self.proxy is not None
        self.proxy = Process("proxy", argv, log_dir=self._scratch, env=self._env() | env, again=again)
        self._processes.append(self.proxy)
        self.url = self.proxy.wait_line("proxy ready: (http://.*)", READY_S)[1]
        return self.url

    def hit(self) -> set[str]:
        """The ids of requests that a leg failed for, as the proxy's log has them."""
        assert self.proxy is not None
        lines = self.proxy.output().splitlines()
        return {line.split("request ", 1)[1].split(":")[0] for line in lines if " failed: " in line}

    def _env(self) -> dict[str, str]:
        path = f"{ROOT}:{ROOT / 'clients/python'}:{os.environ.get('PYTHONPATH', '')}"
        return dict(os.environ) | {"PYTHONPATH": path.strip(":")}


@dataclass
class Done:
    """How one request ended; error is empty if its answer is whole and right."""

    id: str
    ms: float
    error: str


async def load(
    url: str,
    requests: int,
    at_a_time: int,
    *,
    stream: Callable[[int], bool] = lambda n: n % 2 == 0,
    at: dict[int, Callable[[], object]] | None = None,
    tokens: int = 8,
) -> list[Done]:
    """So many requests; `at` does something when a request of that number begins."""
    numbers = iter(range(requests))
    done: list[Done] = []

    async def worker(client: aiohttp.ClientSession) -> None:
        for number in numbers:
            if at and number in at:
                await asyncio.to_thread(at[number])
            done.append(await one(client, number, stream=stream(number), tokens=tokens))

    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as client:
        await asyncio.gather(*(worker(client) for _ in range(at_a_time)))
    return done


async def one(client: aiohttp.ClientSession, number: int, *, stream: bool, tokens: int) -> Done:
    """One completion or chat completion, in turn."""
    asked: dict = {"model": "tiny", "max_tokens": tokens, "stream": stream}
    if chat := number % 4 < 2:
        asked["messages"] = [{"role": "user", "content": f"question {number}"}]
    else:
        asked["prompt"] = f"question {number}"
    id, started = f"load-{number}", time.monotonic()
    path = "/v1/chat/completions" if chat else "/v1/completions"
    try:
        async with client.post(path, json=asked, headers={"X-Request-Id": id}) as response:
            content = await response.read()
            status = response.status
    except (aiohttp.ClientError, TimeoutError) as error:
        return Done(id, 1000 * (time.monotonic() - started), f"{type(error).__name__}: {error}")
    ms = 1000 * (time.monotonic() - started)
    if status != 200:
        return Done(id, ms, f"status {status}: {content[:200]!r}")
    expected = "".join(answer_tokens(asked, tokens))
    given = text_of(content, stream=stream)
    return Done(id, ms, "" if given == expected else f"{given!r} instead of {expected!r}")


def text_of(content: bytes, *, stream: bool) -> str:
    if not stream:
        choice = json.loads(content)["choices"][0]
        return choice["text"] if "text" in choice else choice["message"]["content"]
    events = [line.removeprefix(b"data: ") for line in content.split(b"\n\n") if line.startswith(b"data: ")]
    if not events or events.pop() != b"[DONE]":
        return f"no end: {content[-200:]!r}"
    choices = [json.loads(event)["choices"][0] for event in events]
    return "".join(choice["text"] if "text" in choice else choice["delta"]["content"] for choice in choices)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
