"""`make bench-proxy`: what Larder's proxy adds to a request, next to other proxies that split prefill and decode.

Engines that answer at once, one load, and the proxies in front of the same two engines, measured in turn in every
round and compared round by round; shown are medians. The proxies share a core, and only one has work at a time;
load and engines have the other. Real processes on loopback, ended whatever happens. Takes seven minutes; --quick runs
the same code on little data, in under a minute, and judges nothing. Exit status 0 if it has measured, whether or not
targets are met.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import uvloop

from bench import proxy_load, proxy_report, report
from bench.command import Say, make_parser, work_dir
from bench.proxy_load import Shape
from bench.proxy_report import Measured, Series
from bench.proxy_subjects import Engines, Subject, started
from bench.report import console

PAUSE_S = 0.01  # so that closing one subject's connections does not burden the next
SMALL_BYTES, LARGE_BYTES = 200, 8 << 10
NOTES = """\
Larder, store: the decode engine finds the KV by its content. Larder, pull: it is told what the prefill engine said of
it, as vllm-router does.
direct: the load itself asks the prefill engine, then the decode engine: the floor, in brackets, which "added" is over.
demo proxy: our own rewrite of what vLLM's repository shows (FastAPI, uvicorn, a client session for every leg).
vllm-router and sglang-router are Rust. Every proxy has one core, and all its threads are on it. A router that does not
switch off Nagle's algorithm makes streams wait for the client's delayed acknowledgement, 40 ms.
streamed: 16 events in one write of the engine. paced stream: one every 2 ms, so that a proxy passes each on by itself.
CPU: user and system time of the proxy's processes for a request; of all figures the least disturbed by other work."""


@dataclass(frozen=True)
class Plan:
    clients: tuple[int, ...] = (1, 16, 64)
    prompts: tuple[int, ...] = (SMALL_BYTES, LARGE_BYTES)
    rounds: int = 10
    seconds: float = 0.4

    def cells(self) -> list[tuple[Shape, int]]:
        answered = [Shape(size, streamed) for size in self.prompts for streamed in (False, True)]
        plain = [(shape, clients) for shape in answered for clients in self.clients]
        return [*plain, (Shape(self.prompts[0], streamed=True, paced=True), max(self.clients) // 4)]


QUICK = Plan(clients=(1, 16), rounds=2, seconds=0.1)


def main() -> None:
    parser = make_parser("bench-proxy", __doc__)
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds, 1 to 15")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else Plan()
    if arguments.rounds is not None:
        if not 1 <= arguments.rounds <= 15:
            parser.error("--rounds: 1 to 15 are possible")
        plan = Plan(plan.clients, plan.prompts, arguments.rounds, plan.seconds)
    say, where = Say(), report.machine(("larder-server", "aiohttp", "uvloop", "fastapi", "uvicorn"))
    with work_dir("bench-proxy") as directory, started(directory, say) as (subjects, missing, engines):
        measured = uvloop.run(measure(plan, subjects, engines, say))
    for what, value in where.items():
        console.print(f"{what}: {value}")
    for table in proxy_report.tables(measured):
        console.print(table)
    console.print(NOTES, style="dim")
    busy, (name, shape, clients) = proxy_report.busiest_load(measured)
    at = f"{name}, {shape.name}, {clients} connections"
    console.print(f"load and engines took at most {busy:.0%} of their core: {at}")
    if missing:
        console.print(f"not installed, so not measured: {', '.join(missing)}")
    targets = list(proxy_report.targets(measured))
    console.print("quick: too little to judge" if arguments.quick else report.targets_table(targets))
    if arguments.json is not None:
        figures = where | {"missing": missing} | proxy_report.as_json(measured, targets)
        arguments.json.write_text(json.dumps(figures, indent=1))


async def measure(plan: Plan, subjects: Sequence[Subject], engines: Engines, say: Callable[[str], None]) -> Measured:
    """`plan.rounds` rounds; in each, every shape and number of clients by every subject in turn."""
    measured: dict[proxy_report.Key, Series] = defaultdict(Series)
    for subject in subjects:
        await _check(subject, plan.cells()[0][0], engines)
    for number in range(plan.rounds):
        say(f"round {number + 1} of {plan.rounds}")
        order = [*subjects[number % len(subjects) :], *subjects[: number % len(subjects)]]
        for shape, clients in plan.cells():
            for subject in order:
                cpu_before, load_before = subject.cpu_s(), _load_cpu_s(engines)
                try:
                    load = await proxy_load.run(subject.ports, shape, clients=clients, seconds=plan.seconds)
                except Exception as error:
                    error.add_note(f"asked of {subject.name}: {shape.name}, {clients} connections")
                    raise
                cpu_s, load_cpu_s = subject.cpu_s() - cpu_before, _load_cpu_s(engines) - load_before
                measured[subject.name, shape, clients].add(load, cpu_s=cpu_s, load_cpu_s=load_cpu_s)
                await asyncio.sleep(PAUSE_S)
    return measured


async def _check(subject: Subject, shape: Shape, engines: Engines) -> None:
    """Raises if a subject does not have every request prefilled by one engine and decoded by the other."""
    before = engines.counts()
    load = await proxy_load.run(subject.ports, shape, clients=1, seconds=0)
    legs = [now - then for now, then in zip(engines.counts(), before, strict=True)]
    asked = len(load.latencies_s) + 1  # and the one that warms up
    if legs != [asked, asked]:
        raise RuntimeError(f"{subject.name}: {asked} requests made {legs[0]} prefills and {legs[1]} decodes")


def _load_cpu_s(engines: Engines) -> float:
    return time.process_time() + engines.cpu_s()


if __name__ == "__main__":
    main()
