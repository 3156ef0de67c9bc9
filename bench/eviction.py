"""`make bench-eviction TRACE=FILE`: the share of a trace's blocks that a pool serves, by the master's own code.

A trace has a request a line, as JSON with `hash_ids`: an id for each block of the prompt, where equal ids mean an equal
prefix up to and including that block. A block is served when it and all before it are found: the rest is computed.
Every request looks all its blocks up and puts those it missed. Beside it plain recency (LRU), and the optimum that
knows the future: what is next used furthest ahead goes. The master is `Master.step` with one node, whose one segment
has room for exactly so many blocks; nothing is leased, and eviction begins when a put waits for room. No time passes.
"""

import argparse
import heapq
import json
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table

from bench.report import console
from services.master.core import messages as m
from services.master.core.allocator import ALIGN_BYTES
from services.master.core.master import Master
from services.master.core.messages import Result
from services.master.core.tables import Config

CAPACITIES = "1000,5000,10000,30000"
CONVERSATION = (12_031, 288_500)  # requests and blocks of the trace that the targets are for
RATIO_MIN = {5_000: 1.3, 10_000: 1.1}  # to LRU
BELOW_LRU_MAX = 0.2  # points, at any other capacity
NEVER = sys.maxsize
TICKS_MAX = 10_000  # in a row, without a word from the master: it would be stuck

Requests = list[list[int]]
Watched = Callable[[Requests], Iterable[list[int]]]  # the same requests, with the progress shown


class BadTrace(Exception):
    """Not a trace, or nothing in it."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="bench-eviction", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("trace", type=Path, metavar="TRACE", help="a file, a request a line")
    parser.add_argument("--capacities", default=CAPACITIES, metavar="BLOCKS,...", help=f"of the pool ({CAPACITIES})")
    arguments = parser.parse_args()
    try:
        requests = load(arguments.trace)
        capacities = parse_capacities(arguments.capacities, requests)
    except (BadTrace, OSError) as error:
        sys.exit(f"bench-eviction: {error}")
    blocks = sum(map(len, requests))
    distinct = len({block for request in requests for block in request})
    console.print(
        f"{arguments.trace.name}: {len(requests):,} requests, {blocks:,} blocks, {distinct:,} of them distinct"
    )
    served = {}
    for capacity in capacities:
        for name, run in (("LRU", lru), ("Larder", larder), ("optimum", optimum)):
            served[name, capacity] = 100 * run(requests, capacity, _watched(f"{name}, {capacity:,} blocks")) / blocks
    console.print(_table(served, capacities, (len(requests), blocks) == CONVERSATION))


def load(path: Path) -> Requests:
    """The blocks of each request, in order. Raises BadTrace and OSError."""
    requests = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            blocks = json.loads(line)["hash_ids"]
        except (ValueError, KeyError, TypeError):
            blocks = None
        if not isinstance(blocks, list) or not all(isinstance(block, int) and 0 <= block < 1 << 64 for block in blocks):
            raise BadTrace(f'{path}, line {number}: not a request, {{"hash_ids": [0, 1, ...], ...}}')
        requests.append(list(dict.fromkeys(blocks)))
    if not any(requests):
        raise BadTrace(f"{path}: no request in it")
    return requests


def parse_capacities(text: str, requests: Requests) -> list[int]:
    longest = max(map(len, requests))
    try:
        capacities = [int(part) for part in text.split(",")]
    except ValueError:
        raise BadTrace(f"capacities {text!r}: give numbers of blocks with commas between them") from None
    if min(capacities) < longest:
        raise BadTrace(f"a pool of {min(capacities)} blocks: the longest request has {longest}, give as many at least")
    return capacities


# ---- the three ----------------------------------------------------------------------------------


def larder(requests: Requests, capacity: int, watched: Watched) -> int:
    core = Core(capacity)
    return sum(core.request([block.to_bytes(8) for block in blocks]) for blocks in watched(requests))


def lru(requests: Requests, capacity: int, watched: Watched) -> int:
    cache: OrderedDict[int, None] = OrderedDict()
    served = 0
    for blocks in watched(requests):
        served += _run([block in cache for block in blocks])
        for block in blocks:
            if block not in cache and len(cache) == capacity:
                cache.popitem(last=False)
            cache[block] = None
            cache.move_to_end(block)
    return served


def optimum(requests: Requests, capacity: int, watched: Watched) -> int:
    """Of what is there when room is needed, what is next used furthest ahead goes."""
    following: dict[int, int] = {}  # block -> when it is used next, seen from where the walk back has come to
    uses = [(number, block) for number, blocks in enumerate(requests) for block in blocks]
    next_use = [NEVER] * len(uses)
    for index in range(len(uses) - 1, -1, -1):
        next_use[index] = following.get(uses[index][1], NEVER)
        following[uses[index][1]] = index
    cache: dict[int, int] = {}  # block -> next use
    heap: list[tuple[int, int]] = []  # (-next use, block); entries that are out of date are skipped
    served = index = 0
    for blocks in watched(requests):
        served += _run([block in cache for block in blocks])
        for block in blocks:
            while block not in cache and len(cache) == capacity:
                due, last = heapq.heappop(heap)
                if cache.get(last) == -due:
                    del cache[last]
            cache[block] = next_use[index]
            heapq.heappush(heap, (-next_use[index], block))
            index += 1
    return served


def _run(found: Sequence[bool]) -> int:
    return found.index(False) if False in found else len(found)


class Core:
    """The master's core and a node that acknowledges at once, with room for `capacity` blocks."""

    def __init__(self, capacity: int) -> None:
        self._core = Master(Config(lease_ms=0, high_watermark=1.0), epoch=1)
        self._calls = 0
        self._call(m.Hello(1, "node", 1, 0, "host", [m.SegmentInfo(capacity * ALIGN_BYTES)]), answered=False)
        self._call(m.InventoryEnd(1), answered=False)

    def request(self, keys: list[bytes]) -> int:
        """Look up, and put what is missing; how many blocks were served."""
        results = self._call(m.Lookup(self._next(), keys)).results
        missing = [key for key, result in zip(keys, results, strict=True) if result is Result.MISS]
        if missing:
            sizes, depths = [ALIGN_BYTES] * len(missing), range(len(keys) - len(missing), len(keys))
            call = self._next()
            start = m.PutStart(call, call.to_bytes(16), missing, sizes, 1, depths, wait_ms=1)
            write_ids = self._call(start).write_ids
            call, ones = self._next(), [1] * len(missing)
            ended = self._call(m.PutEnd(call, call.to_bytes(16), write_ids, ones, ones))
            assert ended.copies == ones
        return _run([result is Result.OK for result in results])

    def _next(self) -> int:
        self._calls += 1
        return self._calls

    def _call(self, command: m.Command, *, answered: bool = True) -> Any:
        answer = None
        for _ in range(TICKS_MAX):
            effects = deque(self._core.step(0, command))
            while effects:
                effect = effects.popleft()
                if isinstance(effect, m.Record | m.Forget):
                    effects.extend(self._core.step(0, m.Ack(effect.stream, 1, [effect.command_id])))
                elif isinstance(effect, m.Reply):
                    answer = effect.answer
            if answer is not None or not answered:
                assert not isinstance(answer, m.Rejected), answer
                return answer
            command = m.Tick()  # eviction goes on in the next step
        raise RuntimeError("the master does not answer")


# ---- what is shown ------------------------------------------------------------------------------


def _watched(what: str) -> Watched:
    def watch(requests: Requests) -> Iterable[list[int]]:
        return track(requests, what, console=console, transient=True, disable=not console.is_terminal)

    return watch


def _table(served: dict[tuple[str, int], float], capacities: Sequence[int], judged: bool) -> Table:
    table = Table(title="blocks served, in % of all", box=SIMPLE_HEAD)
    for heading in ("pool, blocks", "LRU", "Larder", "optimum", "Larder to LRU", "target", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for capacity in capacities:
        plain, ours, best = (served[name, capacity] for name in ("LRU", "Larder", "optimum"))
        wanted, met = target(capacity, plain, ours)
        verdict = ("met" if met else "[bold red]MISSED[/]") if judged else ""
        ratio = f"{ours / plain:.3f}" if plain else ""
        table.add_row(
            f"{capacity:,}", f"{plain:.2f}", f"{ours:.2f}", f"{best:.2f}", ratio, wanted if judged else "", verdict
        )
    return table


def target(capacity: int, plain: float, ours: float) -> tuple[str, bool]:
    """What is wanted of a pool on the conversation trace, and whether it is met. Shares in percent."""
    if capacity in RATIO_MIN:
        return f"at least {RATIO_MIN[capacity]:g} x", ours >= RATIO_MIN[capacity] * plain
    return f"at most {BELOW_LRU_MAX:g} below", ours >= plain - BELOW_LRU_MAX


if __name__ == "__main__":
    main()
