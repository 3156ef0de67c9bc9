"""The figures of bench.proxy as tables, and their targets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.proxy_load import Load, Shape
from bench.proxy_subjects import DEMO, DIRECT, LARDER_PULL, LARDER_STORE, VLLM_ROUTER
from bench.report import Target

ADDED_OF_VLLM_ROUTER_MAX = 1.0
THROUGHPUT_OF_DEMO_MIN = 3.0


@dataclass
class Series:
    """One figure per round."""

    p50_s: list[float] = field(default_factory=list)
    p99_s: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    """Of the proxy, for one request."""
    load_busy: list[float] = field(default_factory=list)
    """Share of the other core that load and engines took."""

    def add(self, load: Load, *, cpu_s: float, load_cpu_s: float) -> None:
        self.p50_s.append(load.quantile(0.50))
        self.p99_s.append(load.quantile(0.99))
        self.per_s.append(load.per_s)
        self.cpu_s.append(cpu_s / len(load.latencies_s))
        self.load_busy.append(load_cpu_s / load.seconds)


Key = tuple[str, Shape, int]
"""Subject, shape, number of clients."""
Measured = Mapping[Key, Series]


def added(of: Sequence[float], floor: Sequence[float]) -> list[float]:
    """For each round, what exceeds that round's floor."""
    return [one - least for one, least in zip(of, floor, strict=True)]


def ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """The median of the rounds' own ratios."""
    return median(one / other for one, other in zip(of, to, strict=True))


def tables(measured: Measured) -> Iterator[Table]:
    """One for each shape: what each subject adds to latency, how many requests it serves, what a request costs it."""
    for shape in dict.fromkeys(shape for _, shape, _ in measured):
        table = Table(title=f"{shape.name}: added p50 and p99 in ms, requests/s, CPU us a request", box=SIMPLE_HEAD)
        clients_of = list(dict.fromkeys(clients for _, of, clients in measured if of == shape))
        table.add_column("", no_wrap=True)
        for clients in clients_of:
            for heading in (f"{clients}: p50", "p99", "req/s", "CPU"):
                table.add_column(heading, justify="right", no_wrap=True)
        for name in dict.fromkeys(name for name, _, _ in measured):
            cells = []
            for clients in clients_of:
                series, floor = measured[name, shape, clients], measured[DIRECT, shape, clients]
                if name == DIRECT:
                    p50, p99 = (f"({median(times) * 1e3:.2f})" for times in (series.p50_s, series.p99_s))
                    cells += [p50, p99, f"{median(series.per_s):,.0f}", ""]
                else:
                    p50 = f"{median(added(series.p50_s, floor.p50_s)) * 1e3:.2f}"
                    p99 = f"{median(added(series.p99_s, floor.p99_s)) * 1e3:.2f}"
                    cells += [p50, p99, f"{median(series.per_s):,.0f}", f"{median(series.cpu_s) * 1e6:,.0f}"]
            table.add_row(name, *cells)
        yield table


def busiest_load(measured: Measured) -> tuple[float, Key]:
    """Where load and engines used most of their core, and how much: near 1, they are what is measured."""
    proxies = [key for key in measured if key[0] != DIRECT]
    return max(((median(measured[key].load_busy), key) for key in proxies), key=lambda found: found[0])


def targets(measured: Measured) -> Iterator[Target]:
    """Each next to the one that does as much, if that was measured: the vLLM router hands the prefill's answer to
    the decode engine, the demo does not. Throughput on one core is given per second of wall clock, and per second of
    the core, which excludes other processes. A paced stream says what a proxy costs, not how fast it is."""
    for shape, clients in dict.fromkeys((shape, clients) for _, shape, clients in measured if not shape.paced):
        series = {name: measured[name, of, at] for name, of, at in measured if (of, at) == (shape, clients)}
        if clients == 1 and VLLM_ROUTER in series:
            floor = series[DIRECT].p50_s
            ours, theirs = (added(series[name].p50_s, floor) for name in (LARDER_PULL, VLLM_ROUTER))
            what = f"{shape.name}, one connection: added p50, of {VLLM_ROUTER}'s"
            yield Target(what, ratio(ours, theirs), ADDED_OF_VLLM_ROUTER_MAX, "x")
        if clients > 1 and DEMO in series:
            ours, theirs = series[LARDER_STORE], series[DEMO]
            ratios = {
                "requests/s": ratio(ours.per_s, theirs.per_s),
                "requests a CPU second": ratio(theirs.cpu_s, ours.cpu_s),
            }
            for name, times in ratios.items():
                what = f"{shape.name}, {clients} connections: {name}, of the {DEMO}'s"
                yield Target(what, times, THROUGHPUT_OF_DEMO_MIN, "x", at_least=True)


def as_json(measured: Measured, judged: Sequence[Target]) -> dict[str, Any]:
    return {
        "proxies": [
            {"subject": name, "clients": clients} | vars(shape) | vars(series)
            for (name, shape, clients), series in measured.items()
        ],
        "targets": [vars(target) | {"met": target.met} for target in judged],
    }
