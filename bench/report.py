"""Figures as tables, and their targets."""

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench import metadata
from bench.moving import DIRECTIONS, KIB, LIMIT_OF, MIB, Measured

console = Console(width=None if sys.stdout.isatty() else 132, highlight=False, soft_wrap=False)

TARGET_SIZE_MIN = 1 * MIB
TARGETS = {"shared memory": 0.80, "engine": 0.85}  # of the limit's throughput, without checksums
MATCH_MS_MAX = 2.0
LOOKUP_MS_MAX = 5.0
BYTES_PER_OBJECT_MAX = 1536.0
GROWTH_MAX = 1.5
PACKAGES = ("larder-server", "grpcio", "protobuf", "numpy", "xxhash", "mooncake-transfer-engine-non-cuda")


@dataclass(frozen=True)
class Target:
    what: str
    measured: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def machine(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), platform.machine())
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "machine": f"{cpu}, {os.cpu_count()} cores, {memory_kib / 2**20:.0f} GiB, Linux {platform.release()}",
        "load": f"{os.getloadavg()[0]:.2f} when it began",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
        ),
    }


def size_name(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def bytes_tables(measured: Measured, sizes: Sequence[int]) -> Iterator[Table]:
    """For each direction the movers, and their shares of a limit if they have one."""
    names = list(dict.fromkeys(name for name, _, _ in measured))
    for direction in DIRECTIONS:
        table = Table(title=f"{direction}: GB/s in batches, share of the limit, p50 of a single one", box=SIMPLE_HEAD)
        table.add_column("", no_wrap=True)
        for size in sizes:
            for heading in (size_name(size), "share", "p50 ms"):
                table.add_column(heading, justify="right", no_wrap=True)
        for name in names:
            cells = []
            for size in sizes:
                series = measured[name, size, direction]
                limit = LIMIT_OF.get(name)
                share = f"{series.ratio(measured[limit, size, direction]):.2f}" if limit else ""
                cells += [f"{series.gbps:.2f}", share, f"{series.p50_us / 1e3:.3g}"]
            table.add_row(name, *cells)
        yield table


def master_table(times: metadata.Times, small: int, large: int) -> Table:
    table = Table(title=f"master: p50 of a call with {metadata.KEYS:,} keys, in ms", box=SIMPLE_HEAD)
    for heading in ("", "", f"{small:,} objects", f"{large:,} objects", "growth"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, op in dict.fromkeys((name, op) for name, _, op in times):
        at = [metadata.p50(times, name, objects, op) * 1e3 for objects in (small, large)]
        table.add_row(name, op, *(f"{ms:.2f}" for ms in at), f"{at[1] / at[0]:.2f}")
    return table


def bytes_targets(measured: Measured, sizes: Sequence[int]) -> Iterator[Target]:
    for name, share in TARGETS.items():
        for direction in DIRECTIONS:
            for size in sizes:
                if size >= TARGET_SIZE_MIN:
                    limit = LIMIT_OF[name]
                    ratio = measured[name, size, direction].ratio(measured[limit, size, direction])
                    what = f"{name}, {direction}, {size_name(size)}: share of the {limit}"
                    yield Target(what, ratio, share, "", at_least=True)


def master_targets(times: metadata.Times, small: int, large: int, bytes_per_object: float) -> Iterator[Target]:
    served = metadata.Served.name
    for op, limit_ms in (("match", MATCH_MS_MAX), ("lookup", LOOKUP_MS_MAX)):
        for pattern in ("", metadata.RANDOM):
            for objects in (small, large):
                ms = metadata.p50(times, served, objects, op + pattern) * 1e3
                yield Target(f"{op} of {metadata.KEYS:,} keys{pattern}, {objects:,} objects", ms, limit_ms, "ms")
    yield Target(f"master's memory an object at {large:,}", bytes_per_object, BYTES_PER_OBJECT_MAX, "bytes")
    for name in (served, metadata.Core.name):
        for op in metadata.OPS:
            growth = metadata.p50(times, name, large, op) / metadata.p50(times, name, small, op)
            yield Target(f"growth of {op} from {small:,} to {large:,} objects, {name}", growth, GROWTH_MAX, "x")


def targets_table(targets: Sequence[Target]) -> Table:
    missed = sum(not target.met for target in targets)
    table = Table(title=f"targets: {len(targets) - missed} met, {missed} missed", box=SIMPLE_HEAD)
    for heading in ("", "measured", "target", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for target in targets:
        sign = "at least" if target.at_least else "at most"
        verdict = "met" if target.met else "[bold red]MISSED[/]"
        numbers = (f"{target.measured:.4g} {target.unit}", f"{sign} {target.limit:g} {target.unit}")
        table.add_row(target.what, *numbers, verdict)
    return table


def as_json(measured: Measured, times: metadata.Times, targets: Sequence[Target]) -> dict[str, Any]:
    return machine() | {
        "bytes": [
            {"mover": name, "size": size, "direction": direction, "gbps": series.gbps, "p50_us": series.p50_us,
             "gbps_by_round": series.gbps_by_round}
            for (name, size, direction), series in measured.items()
        ],
        "master": [
            {"subject": name, "objects": objects, "op": op, "p50_s": metadata.p50(times, name, objects, op)}
            for name, objects, op in times
        ],
        "targets": [vars(target) | {"met": target.met} for target in targets],
    }  # fmt: skip
