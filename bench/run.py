"""`make bench`: what Larder costs, next to what this machine can do without it.

Everything compared is measured in turn in the same run, and compared round by round; shown are medians. Bytes first
(`moving`), then the master (`metadata`), each in its own process. Real processes, ended whatever happens. Takes eight
minutes and 8 GB of memory; --quick runs the same code on little data, in under a minute, and judges nothing. Exit
status 0 if it has measured, whether or not targets are met.
"""

import gc
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from bench import metadata, moving, report
from bench.command import Say, make_parser, work_dir
from bench.moving import KIB, MIB
from bench.report import console
from demo.cluster import Cluster

NOTES = """\
memory copy: one thread, one memmove an object, into a mapped, pre-faulted file in shared memory and out of it. Larder
copies with two threads, and past the caches.
loopback TCP: a blocking socket between two processes.
bare engine: two transfer engines in two processes, with the client's settings and bounds (64 transfers, 64 MiB in
flight), one batch id an entry, polled every 50 us.
Larder: put_many, get_many_into and get_many, put and get_into for one; so its times include the calls to the master and
the storage node's acknowledgement. Buffers to get into are registered for the engine unless it says otherwise.
All use the same warm buffers. A batch has 256 MiB unless told otherwise: the KV of a prompt of 2,048 tokens at 128 KiB
each, as an 8B model with grouped-query attention has in 16 bits.
gRPC: a master and a storage node, real processes; Match by the client, put and Lookup by the generated stubs. A put is
PutStart and PutEnd without bytes. bare gRPC: a call with a Match's bytes, to a server that answers at once. core: the
master's core alone, in this process. plain dict: a Python dict of the same keys, asked for each: what reading memory
costs as it grows. Keys are consecutive, as they were put, unless it says random. Calls go in rows, one after another,
as to a master that is in use; the first of a row, also shown by itself, is what a caller waits for after some 20 ms in
which nobody asked, when a shared machine's caches hold others' memory."""


@dataclass(frozen=True)
class Plan:
    sizes: tuple[int, ...] = (64 * KIB, 1 * MIB, 4 * MIB, 16 * MIB)
    rounds: int = 15
    batch_bytes: int = 256 * MIB
    pool: str = "4GB"
    small: int = 10_000
    large: int = 1_000_000


QUICK = Plan(sizes=(64 * KIB, 1 * MIB), rounds=2, batch_bytes=64 * MIB, pool="512MB", small=3_000, large=20_000)


def main() -> None:
    parser = make_parser("bench", __doc__)
    parser.add_argument("--batch-mib", type=int, metavar="N", help="MiB in a batch of puts or gets")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else Plan()
    if arguments.batch_mib is not None:
        if not 16 <= arguments.batch_mib <= 1024:
            parser.error("--batch-mib: 16 to 1024 are possible")
        plan = replace(plan, batch_bytes=arguments.batch_mib * MIB)
    say, where = Say(), report.machine()
    with work_dir("bench") as directory:
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # engines' threads stay as long as their process
            measured = apart.submit(
                moving.measure,
                plan.sizes,
                plan.rounds,
                batch_bytes=plan.batch_bytes,
                pool=plan.pool,
                work_dir=directory,
                say=say,
            ).result()
        times, bytes_per_object = _measure_master(plan, directory, say)
    targets = [
        *report.bytes_targets(measured, plan.sizes),
        *report.master_targets(times, plan.small, plan.large, bytes_per_object),
    ]
    for name, value in where.items():
        console.print(f"{name}: {value}")
    for table in (*report.bytes_tables(measured, plan.sizes), report.master_table(times, plan.small, plan.large)):
        console.print(table)
    console.print(NOTES, style="dim")
    console.print("quick: too little to judge" if arguments.quick else report.targets_table(targets))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(where | report.as_json(measured, times, targets), indent=1))


def _measure_master(plan: Plan, work_dir: Path, say: Callable[[str], None]) -> tuple[metadata.Times, float]:
    """Times, and the real master's memory for each of many objects."""
    with ExitStack() as ending:
        served: list[metadata.Served] = []
        for objects in (plan.small, plan.large):
            cluster = ending.enter_context(Cluster(work_dir / f"master-{objects}"))
            served.append(metadata.Served(objects, cluster))
            ending.callback(served[-1].close)
            metadata.fill(served[-1], say)
        bytes_per_object = served[-1].bytes_per_object
        bare = [metadata.BareCall(objects, work_dir) for objects in (plan.small, plan.large)]
        for each in bare:
            ending.callback(each.close)
        times = metadata.measure([*served, *bare], plan.rounds, say)
    gc.freeze()  # this and the next line as in the master's own process
    gc.set_threshold(50_000, 50, 1_000_000)
    alone = [kind(objects) for kind in (metadata.Core, metadata.PlainDict) for objects in (plan.small, plan.large)]
    for subject in alone:
        metadata.fill(subject, say)
    return times | metadata.measure(alone, plan.rounds, say), bytes_per_object


if __name__ == "__main__":
    main()
