"""`larder trace replay FILE`. `larder --help` imports it too, so the work is in `session`, imported when needed."""

from pathlib import Path

import click
from larder.cli.common import FOUND_WRONG, Common, common_options
from larder.cli.sizes import SizeArgument


@click.group()
def trace() -> None:
    """What a cluster would make of recorded requests."""


@trace.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--capacities",
    metavar="N[,...]",
    help="Sizes of the pool, in blocks, or in bytes (100GB) with --token-bytes; default: eight of them.",
)
@click.option(
    "--token-bytes",
    type=SizeArgument(),
    metavar="SIZE",
    help="KV bytes per token (128KiB); pools then have bytes.",
)
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Where to draw a chart.")
@common_options
def replay(common: Common, file: Path, capacities: str | None, token_bytes: int | None, svg: Path | None) -> None:
    """Shows what share of a trace's prompts pools of several sizes would serve, by the master's own eviction.

    FILE has one request per line, as JSON: with hash_ids, like Mooncake's and Qwen's published traces, or as OpenAI's
    API takes it (prompt, messages, or a batch file's body); it may be a .gz. No cluster is asked. Plain recency (LRU)
    and the optimum, which knows the future, are shown for comparison. Bad lines are named and left out: status 3 then.
    """
    from services.master.replay.session import run

    if not run(file, capacities, token_bytes, svg, is_json=common.is_json):
        raise click.exceptions.Exit(FOUND_WRONG)
