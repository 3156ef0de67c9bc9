"""What the `larder` command shows of keys, sizes, nodes and rows. The only module that knows rich.

Nothing that users chose is taken for markup, cut off, or shown in a form the command would read as another key.
"""

import os
import re
import sys
from typing import Any, Final, Self

import rich.progress
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from larder.v1 import master_pb2
from larder.words import counted

_HEX: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})+")
_WIDTH_MAX: Final = 100_000


def key_of(argument: str) -> bytes:
    """The key that an argument of the command line names: its bytes, or those that 0x and hexadecimal digits say."""
    return bytes.fromhex(argument[2:]) if _HEX.fullmatch(argument) else os.fsencode(argument)


def show_argument(key: bytes) -> str:
    """The reverse: text that can be told from any other, also when it is copied from a table, else hexadecimal."""
    try:
        text = key.decode()
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeError:
        return f"0x{key.hex()}"
    is_plain = text.isprintable() and text == text.strip() and "  " not in text and not text.startswith("-")
    return text if is_plain and not _HEX.fullmatch(text) else f"0x{key.hex()}"


def show_rows(names: list[str], rows: list[list[str]]) -> None:
    """A table on a terminal, else plain columns; every row in one line, whatever the width."""
    console = Console(width=_WIDTH_MAX)
    table = Table(box=box.HEAVY_HEAD if console.is_terminal else None, pad_edge=console.is_terminal)
    for name in names:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table, soft_wrap=True)


class Progress:
    """A bar on stderr if that is a terminal, else nothing. Without a `total` it only counts."""

    def __init__(self, what: str) -> None:
        self.total: int | None = None
        self._what = what
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.DownloadColumn(binary_units=True),
            rich.progress.TransferSpeedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
            redirect_stdout=sys.stdout.isatty(),  # then lines come above the bar; else they are somebody's data
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._task = self._bar.add_task(self._what, total=self.total)
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, size: int) -> None:
        self._bar.advance(self._task, size)


def show_share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def show_rate(a_second: float) -> str:
    return f"{a_second:,.0f}/s" if a_second >= 10 or not a_second else f"{a_second:.1f}/s"


def show_span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def state_of(node: master_pb2.NodeStatus) -> str:
    if not node.draining:
        return node.state
    room = f", {node.drain_without_room} find no room" if node.drain_without_room else ""
    return f"{node.state}, draining: {counted(node.drain_objects, 'object')} left{room}"


def show_size(count: float) -> str:
    value = float(round(count))
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value.is_integer() else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def status_json(reply: master_pb2.StatusReply) -> dict[str, Any]:
    return {
        "version": reply.version,
        "epoch": reply.epoch,
        "objects": reply.objects,
        "object_bytes": reply.object_bytes,
        "writes_in_flight": reply.writes_in_flight,
        "slice_bytes": reply.slice_bytes,
        "rested_ms": reply.rested_ms,
        "rest_left_ms": reply.rest_left_ms,
        "attached": reply.attached,
        "wall_ms": reply.wall_ms,
        "up_ms": reply.up_ms,
        "objects_below_target": reply.objects_below_target,
        "copies_missing": reply.copies_missing,
        "repairs_pending": reply.repairs_pending,
        "waiting_puts": reply.waiting_puts,
        "counts": {field.name: getattr(reply.counts, field.name) for field in reply.counts.DESCRIPTOR.fields},
        "nodes": [
            {
                "node_id": node.node_id,
                "host_id": node.host_id,
                "zone": node.zone,
                "state": node.state,
                "version": node.version,
                "host_name": node.host_name,
                "address": node.address,
                "draining": node.draining,
                "drain_objects": node.drain_objects,
                "drain_without_room": node.drain_without_room,
                "incarnation": node.incarnation,
                "segments": [
                    {
                        "capacity_bytes": part.segment.capacity_bytes,
                        "live_bytes": part.live_bytes,
                        "reserved_bytes": part.reserved_bytes,
                        "quarantined_bytes": part.quarantined_bytes,
                        "free_bytes": part.free_bytes,
                        "pinned_bytes": part.pinned_bytes,
                        "largest_free_bytes": part.largest_free_bytes,
                        "copies": part.copies,
                        "shm_path": part.segment.shm_path,
                        "engine_endpoint": part.segment.engine_endpoint,
                    }
                    for part in node.segments
                ],
            }
            for node in reply.nodes
        ],
    }
