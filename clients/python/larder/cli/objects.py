"""`larder put` and `larder get`: one object's bytes, in and out, at most once in memory."""

import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeVar

import click
import numpy as np

from larder import aio
from larder.cli.common import Common, KeyArgument, common_options, fail, say_json, use_store
from larder.cli.showing import show_argument, show_size
from larder.errors import show_key
from larder.keys import encode_key

T = TypeVar("T")
READ_BYTES: Final = 2**20


@click.command()
@click.argument("key", type=KeyArgument())
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--copies", default=1, show_default=True)
@click.option("--pin", type=click.Choice(["soft", "hard"]), help="Evicted last, or never.")
@click.option("--ttl", "ttl_s", type=float, help="Seconds after which it is gone.")
@click.option("--replace", is_flag=True, help="A KEY that exists gets the new bytes, pin and time to live.")
@common_options
def put(
    common: Common,
    key: bytes,
    file: Path,
    copies: int,
    pin: Literal["soft", "hard"] | None,
    ttl_s: float | None,
    replace: bool,
) -> None:
    """Stores FILE (- is standard input) under KEY. A key that exists keeps its bytes, pin and time to live."""
    with _content(file) as data:
        size = len(data)
        result = use_store(
            common, lambda store: store.put(key, data, copies=copies, pin=pin, ttl_s=ttl_s, replace=replace)
        )
    shown = show_argument(key)
    said = f"{show_size(size)}, copies: {result.copies}"
    if result.existed and replace:
        said = "another put replaced it at the same time"
    elif result.existed:
        said = "existed, and stays as it is" + (": neither pin nor time to live changes" if pin or ttl_s else "")
    if common.is_json:
        say_json({"key": shown, "bytes": size, "copies": result.copies, "existed": result.existed})
    else:
        click.echo(f"{shown}: {said}")


@contextmanager
def _content(file: Path) -> Iterator[Any]:
    """What is in the file, mapped; what comes through a pipe, as it was read."""
    if str(file) == "-":
        yield sys.stdin.buffer.read()
        return
    with file.open("rb") as source:
        try:
            mapped = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # a pipe, or empty
            yield source.read()
            return
        yield np.frombuffer(mapped, dtype=np.uint8)


@click.command()
@click.argument("key", type=KeyArgument())
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@common_options
def get(common: Common, key: bytes, file: Path | None) -> None:
    """Writes the object to FILE, or to standard output if that is not a terminal.

    FILE appears only once it is whole: until then its bytes are in a file beside it. - is standard output.
    """
    if file == Path("-"):
        file = None
    if file is None and sys.stdout.isatty():
        raise click.UsageError("an object's bytes are not for a terminal: name a FILE, or pipe them")
    if file is not None and file.is_dir():
        raise click.BadParameter(f"{file.resolve()} is a directory", param_hint="FILE")
    if file is not None and not file.resolve().parent.is_dir():
        raise click.BadParameter(f"there is no directory {file.resolve().parent}", param_hint="FILE")

    async def read(store: aio.Store) -> bytes:
        data = await store.get(key)
        if data is None:
            fail(f"no object {show_key(encode_key(key))}")
        return data

    data = use_store(common, read)
    if file is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with _atomic(file) as target:
        target.write(data)


@contextmanager
def _atomic(file: Path) -> Iterator[BinaryIO]:
    """Replaces the file once everything is written; special files are written in place."""
    if file.exists() and not file.is_file():
        with file.open("wb") as special:
            yield special
        return
    place = file.resolve()  # a link stays, what it names is replaced
    mode = place.stat().st_mode & 0o777 if place.exists() else 0o666 & ~_umask()
    handle, name = tempfile.mkstemp(prefix=f".{place.name[:100]}.", dir=place.parent)
    try:
        with os.fdopen(handle, "wb") as target:
            os.fchmod(target.fileno(), mode)
            yield target
        os.replace(name, place)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
