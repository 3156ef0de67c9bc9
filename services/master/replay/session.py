"""What `larder trace replay` does: reads, replays with progress on stderr, and shows the figures."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import click
from larder.cli.common import say_json
from larder.cli.sizes import size_of
from larder.errors import InvalidArgument
from rich.console import Console
from rich.progress import track

from services.master.replay.figures import Figures, check_capacities, default_capacities, replay
from services.master.replay.plots import LEGEND, bar, chart, highest, size_name
from services.master.replay.policies import Blocks
from services.master.replay.traces import Trace, TraceError, load

_err: Final = Console(stderr=True)


def run(file: Path, capacities: str | None, token_bytes: int | None, svg: Path | None, *, is_json: bool) -> bool:
    """False if lines had to be left out. Raises TraceError, InvalidArgument and OSError."""
    read = load(file, lambda lines: track(lines, f"reading {file.name}", console=_err, disable=not _err.is_terminal))
    _say_bad(read)
    block_bytes = _block_bytes(read, token_bytes)
    chosen = default_capacities(read) if capacities is None else _parse(capacities, block_bytes)
    check_capacities(chosen, read)
    figures = replay(read, chosen, watched, block_bytes)
    if svg is not None:
        svg.write_text(chart(figures, f"{file.name}: share of blocks served by size of pool"), encoding="utf-8")
    if is_json:
        bad = [{"line": each.number, "why": each.why} for each in read.bad]
        say_json({"file": str(file), "bad_lines": read.bad_lines, "bad": bad} | figures.as_dict())
    else:
        _show(file, figures)
    return not read.bad_lines


def watched(requests: Iterable[Blocks], what: str, total: int) -> Iterable[Blocks]:
    return track(requests, what, total=total, console=_err, transient=True, disable=not _err.is_terminal)


def _say_bad(read: Trace) -> None:
    for each in read.bad:
        click.echo(f"larder: {read.path}, line {each.number}: {each.why}", err=True)
    if read.bad_lines > len(read.bad):
        click.echo(f"larder: {read.path}: and {read.bad_lines - len(read.bad)} lines more", err=True)
    if read.bad_lines:
        click.echo(f"larder: {read.bad_lines} bad lines are left out, {read.requests} requests are taken", err=True)


def _block_bytes(read: Trace, token_bytes: int | None) -> int | None:
    if token_bytes is None:
        return None
    if not read.block_tokens:
        raise TraceError(f"{read.path} does not say how long its prompts are (input_length), so pools have no bytes")
    return token_bytes * read.block_tokens


def _parse(text: str, block_bytes: int | None) -> Sequence[int]:
    chosen = set()
    for part in text.split(","):
        if part.strip().isascii() and part.strip().isdigit():
            chosen.add(int(part))
        elif block_bytes is None:
            raise InvalidArgument(f"{part!r} is no number of blocks; sizes such as 100GB need --token-bytes")
        else:
            chosen.add(size_of(part) // block_bytes)
    return sorted(chosen)


def _show(file: Path, figures: Figures) -> None:
    tokens = f" of {figures.block_tokens} tokens" if figures.block_tokens else ""
    click.echo(
        f"{file.name}: {figures.requests:,} requests, {figures.blocks:,} blocks{tokens}, {figures.distinct:,} of them "
        f"distinct; a pool that holds everything serves {100 * figures.unbounded:.1f} %\n"
    )
    names = list(figures.points[0].shares)
    heads = ["pool", "blocks", *(f"{name} %" for name in names)] if figures.points[0].capacity_bytes else None
    top, rows = highest(figures), []
    for point in figures.points:
        sizes = [size_name(point), f"{point.capacity_blocks:,}"] if heads else [f"{point.capacity_blocks:,}"]
        rows.append([*sizes, *(f"{100 * share:.1f}" for share in point.shares.values()), bar(point, top)])
    _table(heads or ["pool, blocks", *(f"{name} %" for name in names)], rows)
    click.echo(f"\n{LEGEND}   (the share of all blocks that need not be computed; full width {100 * top:.1f} %)")


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(names[index]), *(len(row[index]) for row in rows)) for index in range(len(names))]
    for row in ([*names, ""], *rows):
        cells = "  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=True))
        click.echo(f"{cells}  {row[-1]}".rstrip())
