"""`larder bench`: the figures of larder.benching, as a table or as JSON."""

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import click

from larder.benching import SIZES, Result
from larder.benching import bench as run
from larder.cli.common import Common, Seconds, common_options, say_json
from larder.cli.showing import show_rows, show_size
from larder.cli.sizes import SizeArgument
from larder.mover import TRANSPORTS
from larder.words import counted

SECONDS: Final = 10.0
BYTES: Final = 256 * 2**20


@click.command()
@click.option("--seconds", type=Seconds(0.1, 3600), default=SECONDS, show_default=True, help="In all, about.")
@click.option(
    "--size",
    "sizes",
    type=SizeArgument(),
    multiple=True,
    metavar="SIZE",
    help="Of an object; default: 64KiB, 1MiB, 16MiB.",
)
@click.option(
    "--bytes",
    "bytes_max",
    type=SizeArgument(),
    default=BYTES,
    metavar="SIZE",
    help="In the cluster at a time; default: 256MiB.",
)
@click.option(
    "--transport", type=click.Choice(TRANSPORTS), help="Only by shared memory, or only by the transfer engine."
)
@common_options
def bench(common: Common, seconds: float, sizes: Sequence[int], bytes_max: int, transport: str | None) -> None:
    """Times put, get and match of the running cluster from here: single calls, and batches of many keys.

    Only free room is used, at most a quarter of it, and what was put is removed, even after Ctrl-C. Objects have one
    copy; checksums are made and checked. Beside each throughput stands what one thread copies in this host's memory.
    """
    options = common.options()
    if transport is not None:
        options = replace(options, transports=(transport,))

    async def until_told() -> Result:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await run(options, sorted(set(sizes)) or SIZES, bytes_max, seconds)

    try:
        result = asyncio.run(until_told())
    except asyncio.CancelledError:  # SIGTERM
        raise KeyboardInterrupt from None
    if result.left_out_bytes:
        sizes_left = ", ".join(map(show_size, result.left_out_bytes))
        said = f"larder: no room for objects of {sizes_left} within --bytes and a quarter of what is free: left out"
        click.echo(said, err=True)
    if common.is_json:
        say_json(result.as_dict())
        return
    show_rows(
        ["object", "", "calls", "p50 ms", "p99 ms", "batch", "GB/s", "memory GB/s"],
        [_cells(row) for row in result.rows],
    )
    moved = ", ".join(f"{show_size(count)} by {_WAYS[name]}" for name, count in result.moved_bytes.items() if count)
    click.echo(f"\n{moved}, in {result.seconds:.1f} s")


_WAYS: Final = {"shm": "shared memory", "engine": "the transfer engine"}


def _cells(row: dict[str, Any]) -> list[str]:
    rates = [f"{row[name]:.2f}" if row[name] else "" for name in ("gbps", "memory_gbps")]
    batch = counted(row["batch_keys"], "key")
    times = [f"{row[name]:.3g}" for name in ("p50_ms", "p99_ms")]
    return [show_size(row["size_bytes"]), row["operation"], str(row["calls"]), *times, batch, *rates]
