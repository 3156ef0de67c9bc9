"""`larder put` and `larder get`: one object's bytes, in and out."""

import json
import sys
from pathlib import Path
from typing import Literal

import click

from larder.cli.common import Common, KeyArgument, common_options, fail, use_store
from larder.cli.showing import show_argument, show_size
from larder.errors import show_key
from larder.keys import encode_key


@click.command()
@click.argument("key", type=KeyArgument())
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--copies", default=1, show_default=True)
@click.option("--pin", type=click.Choice(["soft", "hard"]), help="Evicted last, or never.")
@click.option("--ttl", "ttl_s", type=float, help="Seconds after which it is gone.")
@common_options
def put(
    common: Common,
    key: bytes,
    file: Path,
    copies: int,
    pin: Literal["soft", "hard"] | None,
    ttl_s: float | None,
) -> None:
    """Stores FILE (- is standard input) under KEY. What exists stays as it is, its pin and time to live too."""
    data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    result = use_store(common, lambda store: store.put(key, data, copies=copies, pin=pin, ttl_s=ttl_s))
    shown = show_argument(key)
    said = f"{show_size(len(data))}, copies: {result.copies}"
    if result.existed:
        said = "existed, and stays as it is" + (": neither pin nor time to live changes" if pin or ttl_s else "")
    facts = {"key": shown, "bytes": len(data), "copies": result.copies, "existed": result.existed}
    click.echo(json.dumps(facts) if common.is_json else f"{shown}: {said}")


@click.command()
@click.argument("key", type=KeyArgument())
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@common_options
def get(common: Common, key: bytes, file: Path | None) -> None:
    """Writes the object to FILE, or to standard output."""
    data = use_store(common, lambda store: store.get(key))
    if data is None:
        fail(f"no object {show_key(encode_key(key))}")
    if file is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        file.write_bytes(data)
