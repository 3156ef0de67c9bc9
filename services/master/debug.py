"""`larder debug replay FILE`. Loaded for `larder --help` too: the work is in `post_mortem`, loaded when wanted."""

from pathlib import Path

import click
from larder.cli.common import FOUND_WRONG


@click.group()
def debug() -> None:
    """What a master left behind when it failed."""


@debug.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--last", type=click.IntRange(0), default=10, metavar="N", help="Steps to show; default: 10.")
@click.option("--check", is_flag=True, help="Checks the invariants after every step, which is slow.")
def replay(file: Path, last: int, check: bool) -> None:
    """Steps a core through a recording, and shows where it fails.

    FILE is what a master wrote when its core failed; its log names it. No cluster is asked. A recording that begins
    later than its core can be read, but not replayed: status 1. Status 3: the core failed. Status 0: it did not, as
    once the fault is mended.
    """
    from services.master.post_mortem import run

    if not run(file, last, check=check):
        raise click.exceptions.Exit(FOUND_WRONG)
