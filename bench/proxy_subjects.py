"""The proxies that bench.proxy compares, as real processes in front of the same two engines, each pinned to one core.

Larder's, a demo's, and the peers installed in PEERS_ENV (`make bench-proxy` installs them; a missing one is left out
and named). The engines and the load share the other core. CPU time is counted in nanoseconds by the
kernel, over all threads of all processes of a subject.
"""

import contextlib
import http.client
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.proxy_engine import HOST
from demo.cluster import FOREIGN_ENV, START_DEADLINE_S, answers, free_port
from demo.processes import Process

PEERS_ENV = Path(".venv-peers")
HERE = Path(__file__).parent
ENV = {key: value for key, value in os.environ.items() if not key.startswith((*FOREIGN_ENV, "OPENAI_API_KEY"))}
DIRECT, DEMO = "direct", "demo proxy"
LARDER_STORE, LARDER_PULL = "Larder, store", "Larder, pull"  # how it hands the KV over
VLLM_ROUTER, SGLANG_ROUTER = "vllm-router", "sglang-router"


@dataclass(frozen=True)
class Subject:
    """Ports to ask in turn: a proxy's, or both engines' if there is none."""

    name: str
    ports: tuple[int, ...]
    process: Process | None

    def cpu_s(self) -> float:
        return cpu_s(self.process.members() if self.process else [])


class Engines:
    def __init__(self, log_dir: Path, core: int) -> None:
        with pinned(core):
            argv = [sys.executable, HERE / "proxy_engine.py"]
            self.process = Process("engines", argv, log_dir=log_dir, env=ENV)
        try:
            said = self.process.wait_line(r"engines ready: prefill (\d+) decode (\d+)", START_DEADLINE_S)
        except BaseException:
            self.process.stop()
            raise
        self.prefill, self.decode = int(said[1]), int(said[2])

    def cpu_s(self) -> float:
        return cpu_s([self.process.pid])

    def counts(self) -> tuple[int, int]:
        """Requests that each engine had so far."""
        connection = http.client.HTTPConnection(HOST, self.decode, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/counts")
            counted = json.loads(connection.getresponse().read())
        return counted["prefill"], counted["decode"]


def commands(engines: Engines, port: int) -> dict[str, list[str | Path]]:
    """How each proxy is started on `port`."""
    prefill, decode = f"{HOST}:{engines.prefill}", f"{HOST}:{engines.decode}"
    listen: list[str | Path] = ["--host", HOST, "--port", str(port)]
    peers = PEERS_ENV.absolute() / "bin"
    pair: list[str | Path] = ["--prefill", f"http://{prefill}", "--decode", f"http://{decode}"]
    quiet: list[str | Path] = ["--policy", "round_robin", "--prometheus-port", str(free_port()), "--log-level", "error"]
    larder = [Path(sys.executable).with_name("proxy"), "--prefill", prefill, "--decode", decode, *listen]
    return {
        LARDER_STORE: [*larder, "--handover", "store"],
        LARDER_PULL: [*larder, "--handover", "pull"],
        VLLM_ROUTER: [peers / "vllm-router", "--vllm-pd-disaggregation", *pair, *listen, *quiet],
        SGLANG_ROUTER: [peers / "sglang-router", "launch", "--pd-disaggregation", *pair, *listen, *quiet],
        DEMO: [sys.executable, HERE / "proxy_demo.py", str(port), prefill, decode],
    }


@contextlib.contextmanager
def started(log_dir: Path, say: Callable[[str], None]) -> Iterator[tuple[list[Subject], list[str], Engines]]:
    """The subjects, ready; the names of those that are not installed; the engines. All end with the `with` block."""
    proxy_core, load_core = cores()
    with contextlib.ExitStack() as ending:
        engines = Engines(log_dir, load_core)
        ending.callback(engines.process.stop)
        subjects = [Subject(DIRECT, (engines.prefill, engines.decode), None)]
        missing = []
        for name in commands(engines, 0):
            port = free_port()
            argv = commands(engines, port)[name]
            if not Path(argv[0]).exists():
                missing.append(name)
                continue
            with pinned(proxy_core):
                process = Process(name.replace(", ", "-").replace(" ", "-"), argv, log_dir=log_dir, env=ENV)
            ending.callback(process.stop)
            process.wait_until(partial(answers, f"{HOST}:{port}", "/health"), START_DEADLINE_S)
            subjects.append(Subject(name, (port,), process))
            say(f"{name} ready after {process.age_s:.1f} s")
        with pinned(load_core):  # the load is this process
            yield subjects, missing, engines


def cores() -> tuple[int, int]:
    """Of the proxies, and of the load and the engines; the same if there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Pins this process, and what it starts meanwhile, to one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds so far, user and system, of all threads."""
    total_ns = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                total_ns += int((thread / "schedstat").read_text().split()[0])
    return total_ns / 1e9
