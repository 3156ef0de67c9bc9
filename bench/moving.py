"""Bytes: put and get of every mover in turn, in batches and one at a time.

A round goes through the sizes, and for each through the movers, in an order that rotates from round to round. All
movers use the same source and destination buffers. What comes back is compared in the first round, which is not
counted.
"""

import gc
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from bench import store
from bench.limits import ENGINE_ENV, BareEngine, Buffers, Copy, FreshCopy, Loopback, Mover, Peer
from bench.store import Larder, LarderFresh
from demo.cluster import Cluster

KIB, MIB = 2**10, 2**20
SINGLES = 8  # puts and gets one at a time, in each round
DIRECTIONS = ("put", "get")

# Each of Larder's movers and what it is compared with.
LIMIT_OF = {
    "shared memory": "memory copy",
    "shared memory, checksums": "memory copy",
    "shared memory, new bytes": "memory copy, new bytes",
    "engine": "bare engine",
    "engine, checksums": "bare engine",
    "engine, buffers not registered": "bare engine",
}


@dataclass
class Series:
    """For one mover, size and direction: one batch per round, and every single operation."""

    gbps_by_round: list[float] = field(default_factory=list)
    single_s: list[float] = field(default_factory=list)

    @property
    def gbps(self) -> float:
        return median(self.gbps_by_round)

    @property
    def p50_us(self) -> float:
        return median(self.single_s) * 1e6

    def ratio(self, limit: "Series") -> float:
        """Median of the ratios of each round: what slows the machine for a while slows both."""
        return median(ours / theirs for ours, theirs in zip(self.gbps_by_round, limit.gbps_by_round, strict=True))


Measured = dict[tuple[str, int, str], Series]
"""By mover, size and direction."""


def measure(
    sizes: Sequence[int], rounds: int, *, batch_bytes: int, pool: str, work_dir: Path, say: Callable[[str], None]
) -> Measured:
    """`rounds` rounds, after one to warm up and check."""
    source = np.random.default_rng(1).integers(0, 256, batch_bytes, dtype=np.uint8)
    destination = np.ones(batch_bytes, dtype=np.uint8)
    warming: Measured = defaultdict(Series)
    measured: Measured = defaultdict(Series)
    with _movers(destination, pool, work_dir) as movers:
        for number in range(rounds + 1):
            say(f"bytes: round {number} of {rounds}")
            turn = number % len(movers)
            for size in sizes:
                sources = Buffers.cut(source, size, batch_bytes // size)
                destinations = Buffers.cut(destination, size, batch_bytes // size)
                for mover in [*movers[turn:], *movers[:turn]]:
                    if number:
                        _visit(mover, sources, destinations, size, measured)
                    else:
                        destination.fill(0)
                        _visit(mover, sources, destinations, size, warming)
                        mover.check(sources, destinations)
                    mover.end()
    return dict(measured)


@contextmanager
def _movers(destination: npt.NDArray[np.uint8], pool: str, work_dir: Path) -> Iterator[list[Mover]]:
    os.environ.update(ENGINE_ENV)  # read when an engine is loaded
    with ExitStack() as ending:
        cluster = ending.enter_context(Cluster(work_dir / "bytes"))
        store.start(cluster, pool)
        peer = Peer(destination.nbytes, cluster.work_dir)
        ending.callback(peer.close)
        master = cluster.master
        movers: list[Mover] = [
            Copy(destination.nbytes, cluster.pool_dir),
            Larder("shared memory", master, "shm", verify=False),
            Larder("shared memory, checksums", master, "shm", verify=True),
            FreshCopy(destination.nbytes, cluster.pool_dir),
            LarderFresh("shared memory, new bytes", master, "shm", verify=False),
            Loopback(peer),
            BareEngine(peer),
            Larder("engine", master, "engine", verify=False, destination=destination),
            Larder("engine, checksums", master, "engine", verify=True, destination=destination),
            Larder("engine, buffers not registered", master, "engine", verify=False),
        ]
        for mover in movers:
            ending.callback(mover.close)
        yield movers


def _visit(mover: Mover, sources: Buffers, destinations: Buffers, size: int, measured: Measured) -> None:
    put, get = (measured[mover.name, size, direction] for direction in DIRECTIONS)
    for index in range(SINGLES):
        mover.begin(1, size)
        put.single_s.append(_timed(mover.put, sources.one(index)))
        get.single_s.append(_timed(mover.get, destinations.one(index)))
        mover.end()
    mover.begin(len(sources), size)
    put.gbps_by_round.append(sources.total_bytes / 1e9 / _timed(mover.put, sources))
    get.gbps_by_round.append(sources.total_bytes / 1e9 / _timed(mover.get, destinations))


def _timed(move: Callable[[Buffers], None], buffers: Buffers) -> float:
    gc.collect(0)
    begun = time.perf_counter()
    move(buffers)
    return time.perf_counter() - begun
