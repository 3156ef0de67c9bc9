"""`make demo` and `make up`: the whole cluster on this machine, with real engines.

The demo asks a plain vLLM first, then the same through the proxy: cold, and again with the engines' own caches
emptied, so that only Larder can still know the prompt. It succeeds, with exit status 0, if every answer has the plain
engine's tokens, the decode engine loaded every whole block of every prompt from Larder, and nothing is left running.
"""

import argparse
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.table import Table

from demo.cluster import BLOCK_TOKENS, Cluster
from demo.processes import Process, ProcessError
from demo.traffic import Answer, Prompt, RequestError, ask, make_prompts, metric, post

NODES = ("node-1", "node-2")
# Of `make up`; the demo takes free ones.
MASTER_PORT, METRICS_PORT, PREFILL_PORT, DECODE_PORT, PROXY_PORT = 50001, 9101, 8100, 8200, 8000
PROMPT_TOKENS = [500, 700, 900, 1100, 1300, 1500, 1700, 1780]  # a chat has a few more, for its template
SETTLE_DEADLINE_S = 10.0
REQUEST = Path(__file__).with_name("request.json")  # longer than a chunk, which is what is stored and loaded

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=False)


@dataclass(frozen=True)
class Turn:
    """One request through the proxy, and what it did."""

    answer: Answer
    loaded_tokens: int  # by the decode engine, from Larder
    got_bytes: int
    put_bytes: int


@dataclass(frozen=True)
class Row:
    prompt: Prompt
    expected: Answer
    cold: Turn
    warm: Turn

    def faults(self) -> list[str]:
        """What is wrong with it; empty if nothing is."""
        found = []
        for name, turn in (("cold", self.cold), ("again", self.warm)):
            if turn.answer.token_ids != self.expected.token_ids:
                found.append(f"{name}: tokens {turn.answer.token_ids}, not {self.expected.token_ids}")
            whole_blocks = self.expected.prompt_tokens // BLOCK_TOKENS * BLOCK_TOKENS
            if turn.loaded_tokens < whole_blocks:
                found.append(f"{name}: loaded {turn.loaded_tokens} tokens from Larder, not {whole_blocks}")
        if not self.cold.put_bytes or self.warm.put_bytes:
            found.append(
                f"put {self.cold.put_bytes} bytes cold and {self.warm.put_bytes} again, which must be some and 0"
            )
        return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description="A whole Larder cluster on this machine.")
    parser.add_argument("--up", action="store_true", help="leave it running until Ctrl-C")
    up = parser.parse_args().up
    for number in (signal.SIGINT, signal.SIGTERM):  # even if a background shell has SIGINT ignored
        signal.signal(number, _interrupt)
    work_dir = Path(".work") / ("up" if up else "demo")
    started = time.monotonic()
    console.print(f"Larder {'up' if up else 'demo'}; logs are in {work_dir}")
    try:
        model = work_dir / "model"
        from demo.tiny_model import make_model  # takes seconds to load, which --help need not

        make_model(model)
        with Cluster(work_dir, say=lambda text: console.print(f"  {text}")) as cluster:
            if up:
                return run_until_interrupt(cluster, model)
            faults = run_demo(cluster, model)
            faults += end(cluster)
    except (ProcessError, RequestError, OSError) as error:
        faults = [str(error)]
    except KeyboardInterrupt:
        console.print("interrupted; everything is stopped")
        return 0 if up else 130
    for fault in faults:
        console.print(f"WRONG {fault}", markup=False, soft_wrap=True)
    verdict = "everything as it should be" if not faults else f"wrong: {len(faults)}"
    console.print(f"{verdict}, after {time.monotonic() - started:.0f} s")
    return 1 if faults else 0


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def start(cluster: Cluster, model: Path, *, up: bool) -> str:
    """Start everything, slow things in parallel; returns the proxy's HOST:PORT. `up`: on the default ports, and without
    the plain engine."""
    console.print("starting master, storage nodes, engines and proxy (a minute or two)")
    if up:
        cluster.start_master("--metrics-port", str(METRICS_PORT), port=MASTER_PORT)
    else:
        cluster.start_master()
    for node in NODES:
        cluster.start_node(node)
    for name, kv_role, port in (("prefill", "kv_both", PREFILL_PORT), ("decode", "kv_consumer", DECODE_PORT)):
        cluster.start_engine(name, model, kv_role=kv_role, own_worker=not up, port=port if up else 0)
    if not up:
        cluster.start_engine("plain", model, own_worker=False)
    cluster.wait_ready()
    cluster.start_proxy(prefill=["prefill"], decode=["decode"], port=PROXY_PORT if up else 0)
    cluster.wait_ready()
    return cluster.addresses["proxy"]


def run_demo(cluster: Cluster, model: Path) -> list[str]:
    """Compare every answer with the plain engine's and print the table; returns what is wrong, if anything."""
    proxy = start(cluster, model, up=False)
    console.print("asking the plain engine, then the cluster: cold, and again with the engines' own caches emptied")
    [warm_up] = make_prompts(model, tokens=[600], seed=1)
    for address in (cluster.addresses["plain"], proxy):
        ask(address, warm_up)
    prompts = make_prompts(model, tokens=PROMPT_TOKENS)
    expected = [ask(cluster.addresses["plain"], prompt) for prompt in prompts]
    rows = [
        Row(prompt, answer, take_turn(cluster, prompt), take_turn(cluster, prompt))
        for prompt, answer in zip(prompts, expected, strict=True)
    ]
    show(rows)
    return [f"prompt {number}, {fault}" for number, row in enumerate(rows, 1) for fault in row.faults()]


def take_turn(cluster: Cluster, prompt: Prompt) -> Turn:
    """Send it through the proxy to engines that have nothing cached, and count what it moved."""
    for engine in ("prefill", "decode"):
        post(cluster.addresses[engine], "/reset_prefix_cache")
    master, decode = cluster.metrics["master"], cluster.metrics["decode"]
    loaded = metric(decode, "vllm:external_prefix_cache_hits_total")
    got = metric(decode, "larder_client_got_bytes_total")
    held = metric(master, "larder_master_object_bytes")
    answer = ask(cluster.addresses["proxy"], prompt)
    settle(cluster)
    return Turn(
        answer,
        loaded_tokens=int(metric(decode, "vllm:external_prefix_cache_hits_total") - loaded),
        got_bytes=int(metric(decode, "larder_client_got_bytes_total") - got),
        put_bytes=int(metric(master, "larder_master_object_bytes") - held),
    )


def show(rows: list[Row]) -> None:
    table = Table(title="cold / again", title_justify="left")
    table.add_column("request")
    for heading in (
        "prompt\ntokens",
        "loaded from\nLarder",
        "put\nMB",
        "got\nMB",
        "first token\nms",
        "tokens as the\nplain engine's",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        kind = f"{'chat' if row.prompt.chat else 'completion'}{', streamed' if row.prompt.stream else ''}"
        pairs = zip(cells(row.cold, row.expected), cells(row.warm, row.expected), strict=True)
        table.add_row(kind, str(row.expected.prompt_tokens), *(" / ".join(pair) for pair in pairs))
    console.print(table)
    console.print("first token: as the caller sees it; an answer that is not streamed arrives as a whole")


def cells(turn: Turn, expected: Answer) -> list[str]:
    return [
        str(turn.loaded_tokens),
        f"{turn.put_bytes / 1e6:.2f}",
        f"{turn.got_bytes / 1e6:.2f}",
        f"{turn.answer.first_token_s * 1e3:.0f}",
        "yes" if turn.answer.token_ids == expected.token_ids else "NO",
    ]


def end(cluster: Cluster) -> list[str]:
    """Stop everything in order; returns what did not end cleanly, or is still there."""
    processes: list[Process] = list(cluster.processes.values())
    faults = [f"{name} ended with status {status}" for name, status in cluster.close().items() if status != 0]
    faults += [f"{process.name} left {process.members()} running" for process in processes if process.members()]
    if cluster.pool_dir.exists():
        faults.append(f"{cluster.pool_dir} is still there")
    return faults


def run_until_interrupt(cluster: Cluster, model: Path) -> int:
    proxy = start(cluster, model, up=True)
    send_twice(cluster)
    console.print(f"""
Running; Ctrl-C ends it. Send it again yourself, and look what is stored:

  curl http://{proxy}/v1/completions -H 'Content-Type: application/json' -d @demo/request.json
  .venv/bin/larder status

The cluster at a glance: http://{cluster.metrics["master"]}/""", markup=False)
    while True:
        for process in cluster.processes.values():
            if not process.running():
                raise ProcessError(
                    f"{process.name} ended by itself. The last lines of {process.log}:\n{process.tail()}"
                )
        time.sleep(0.5)


def send_twice(cluster: Cluster) -> None:
    """Show what the store is for: the engines forget the prompt in between, and it is not computed again."""
    request = json.loads(REQUEST.read_text())
    prompt = Prompt(request["prompt"], chat=False, stream=False)
    console.print("sending a prompt twice; in between the engines' own caches are emptied")
    table = Table()
    for heading in ("", "prompt\ntokens", "of them\ncached", "objects in Larder\nbefore / after", "answered after\nms"):
        table.add_column(heading, justify="right")
    for name in ("first", "second"):
        for engine in ("prefill", "decode"):
            post(cluster.addresses[engine], "/reset_prefix_cache")
        before = objects(cluster)
        answer = ask(cluster.addresses["proxy"], prompt, max_tokens=request["max_tokens"])
        settle(cluster)
        cells = (answer.prompt_tokens, answer.cached_tokens, f"{before} / {objects(cluster)}")
        table.add_row(name, *map(str, cells), f"{answer.first_token_s * 1e3:.0f}")
    console.print(table)


def objects(cluster: Cluster) -> int:
    return int(metric(cluster.metrics["master"], "larder_master_objects"))


def settle(cluster: Cluster) -> None:
    """Wait for the writes under way."""
    deadline = time.monotonic() + SETTLE_DEADLINE_S
    while metric(cluster.metrics["master"], "larder_master_writes_in_flight") and time.monotonic() < deadline:
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
