"""`larder trace replay FILE`. Loaded for `larder --help` too: the work is in `session`, loaded when there is some."""

from pathlib import Path

import click
from larder.cli.common import FOUND_WRONG, Common, common_options
from larder.cli.sizes import SizeArgument


@click.group()
def trace() -> None:
    """Recorded requests: what a cluster would make of them."""


@trace.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--capacities",
    metavar="N[,...]",
    help="Of the pool, in blocks, or in bytes (100GB) with --token-bytes; default: 8.",
)
@click.option(
    "--token-bytes", type=SizeArgument(), metavar="SIZE", help="Of KV a token, such as 128KiB: says pools in bytes."
)
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Draws a chart there.")
@common_options
def replay(common: Common, file: Path, capacities: str | None, token_bytes: int | None, svg: Path | None) -> None:
    """Which share of a trace's prompts pools of several sizes would serve, by the master's own eviction.

    FILE has a request a line, as JSON: with hash_ids, as Mooncake's and Qwen's published traces, or as OpenAI's API
    takes it (prompt, messages, or a batch file's body); .gz is read too. No cluster is asked. Beside Larder's stand
    plain recency (LRU) and the optimum that knows the future. Bad lines are named and left out; status 3 then.
    """
    from services.master.replay.session import run

    if not run(file, capacities, token_bytes, svg, is_json=common.is_json):
        raise click.exceptions.Exit(FOUND_WRONG)
