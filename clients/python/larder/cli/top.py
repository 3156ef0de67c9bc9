"""`larder top`: how the cluster fares right now, tick by tick. Knows rich's live display, for terminals."""

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from larder.cli.common import Common, Seconds, ask_master, common_options, say_json
from larder.cli.showing import show_rate, show_share, show_size, state_of
from larder.errors import LarderError
from larder.rpc import MasterClient
from larder.v1 import master_pb2 as pb
from larder.words import counted

BAR_WIDTH = 24


@dataclass(frozen=True)
class Tick:
    """Two statuses of one master's reign, and the seconds between them."""

    before: pb.StatusReply
    now: pb.StatusReply
    seconds: float

    def grown(self, name: str) -> int:
        counted: int = getattr(self.now.counts, name) - getattr(self.before.counts, name)
        return counted

    def rate(self, name: str) -> float:
        return self.grown(name) / self.seconds

    def hit_rate(self, call: str) -> float | None:
        asked = self.grown(f"{call}_keys")
        return self.grown(f"{call}_hit_keys") / asked if asked else None

    def pools(self) -> list[tuple[pb.NodeStatus, int, int]]:
        """Node, bytes used, capacity."""
        found = []
        for node in self.now.nodes:
            capacity = sum(part.segment.capacity_bytes for part in node.segments)
            found.append((node, capacity - sum(part.free_bytes for part in node.segments), capacity))
        return found

    def fill(self) -> tuple[int, int]:
        return sum(used for _, used, _ in self.pools()), sum(capacity for *_, capacity in self.pools())

    def json(self) -> dict[str, Any]:
        used, capacity = self.fill()
        return {
            "wall_ms": self.now.wall_ms,
            "seconds": round(self.seconds, 3),
            "put_objects_per_s": round(self.rate("put_objects"), 3),
            "put_bytes_per_s": round(self.rate("put_bytes"), 3),
            "get_keys_per_s": round(self.rate("lookup_keys"), 3),
            "get_bytes_per_s": round(self.rate("lookup_hit_bytes"), 3),
            "get_hit_rate": self.hit_rate("lookup"),
            "match_keys_per_s": round(self.rate("match_keys"), 3),
            "match_hit_rate": self.hit_rate("match"),
            "evicted_objects_per_s": round(self.rate("evicted_objects"), 3),
            "objects": self.now.objects,
            "objects_below_target": self.now.objects_below_target,
            "repairs_pending": self.now.repairs_pending,
            "rest_left_ms": self.now.rest_left_ms,
            "fill": used / capacity if capacity else None,
            "nodes": [
                {
                    "node_id": node.node_id,
                    "state": node.state,
                    "draining": node.draining,
                    "used_bytes": used,
                    "capacity_bytes": capacity,
                }
                for node, used, capacity in self.pools()
            ],
        }

    def lines(self) -> list[str]:
        put, get, match = self.rate("put_objects"), self.rate("lookup_keys"), self.rate("match_keys")
        written, read = show_size(self.rate("put_bytes")), show_size(self.rate("lookup_hit_bytes"))
        said = [
            f"put {show_rate(put)}, {written}/s",
            f"get {show_rate(get)}, {read}/s, hit {_share(self.hit_rate('lookup'))}",
            f"match {show_rate(match)} keys, hit {_share(self.hit_rate('match'))}",
        ]
        state = [
            f"fill {show_share(*self.fill())}",
            f"{self.now.attached} of {len(self.now.nodes)} nodes",
            counted(self.now.objects, "object"),
            f"{self.now.objects_below_target:,} below target",
            f"{self.now.repairs_pending:,} repairs in work",
            f"evicted {show_rate(self.rate('evicted_objects'))}",
        ]
        if self.now.rest_left_ms:
            state.append(f"what is free rests for {self.now.rest_left_ms / 1000:.0f} s more")
        return ["; ".join(said), "; ".join(state)]


@click.command(short_help="Rates, hit rate and fill, live.")
@click.option(
    "--interval", type=Seconds(0.1, 3600), default=1.0, show_default=True, metavar="SECONDS",
    help="Between two looks.",
)  # fmt: skip
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many; default: with Ctrl-C.")
@common_options
def top(common: Common, interval: float, count: int | None) -> None:
    """Rates of put, get and match, hit rates and fill by node, again and again.

    On a terminal a live display, else one line each time; with --format json, one object per line.
    """
    console = Console()
    with ExitStack() as stack:
        if common.is_json:
            show: Callable[[Tick | LarderError], None] = _say
        elif console.is_terminal and not console.is_dumb_terminal:
            live = stack.enter_context(Live(console=console, auto_refresh=False))
            show = lambda what: live.update(_display(what), refresh=True)  # noqa: E731
        else:
            show = _print
        try:
            ask_master(common, lambda client: _watch(client, common, interval, count, show))
        except KeyboardInterrupt:
            if count is not None:
                raise


async def _watch(
    client: MasterClient, common: Common, interval: float, count: int | None, show: Callable[[Tick | LarderError], None]
) -> None:
    """Raises LarderError if the first look fails; later failures are shown, and it goes on: masters are restarted."""
    before = await client.status(deadline=common.deadline())
    seen_at = time.monotonic()
    shown = 0
    while count is None or shown < count:
        await asyncio.sleep(interval)
        shown += 1
        try:
            now = await client.status(deadline=common.deadline())
        except LarderError as error:
            show(error)
            continue
        at = time.monotonic()
        if now.epoch != before.epoch:  # what was counted began anew
            before = pb.StatusReply(epoch=now.epoch)
        show(Tick(before, now, at - seen_at))
        before, seen_at = now, at


def _say(what: Tick | LarderError) -> None:
    say_json(what.json() if isinstance(what, Tick) else {"error": str(what)})


def _print(what: Tick | LarderError) -> None:
    clock = time.strftime("%H:%M:%S")
    click.echo(f"{clock}  " + ("; ".join(what.lines()) if isinstance(what, Tick) else f"larder: {what}"))


def _display(what: Tick | LarderError) -> Any:
    if isinstance(what, LarderError):
        return Text(f"larder: {what}", style="red")
    table = Table(box=None, pad_edge=False)
    for name in ("node", "state", "fill", "", "used", "capacity"):
        table.add_column(name, no_wrap=True)
    for node, used, capacity in what.pools():
        bar = ProgressBar(total=max(capacity, 1), completed=used, width=BAR_WIDTH)
        sizes = (show_share(used, capacity), show_size(used), show_size(capacity))
        table.add_row(Text(node.node_id), state_of(node), bar, *sizes)
    return Group(*map(Text, what.lines()), table)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
