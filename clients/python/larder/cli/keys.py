"""`larder ls` and `larder rm`: keys, without their bytes."""

from typing import Final

import click

from larder import aio
from larder.cli.common import Common, KeyArgument, ask_master, common_options, fail, say_json, use_store
from larder.cli.showing import show_argument, show_rows, show_size
from larder.errors import show_key
from larder.keys import encode_key
from larder.rpc import MasterClient

PAGE_KEYS: Final = 10_000


@click.command()
@click.argument("prefix", type=KeyArgument(), default="")
@common_options
def ls(common: Common, prefix: bytes) -> None:
    """Keys that begin with PREFIX, with their sizes and copies."""
    rows = ask_master(common, lambda client: _list(client, prefix, common))
    if common.is_json:
        shown = [{"key": show_argument(key), "size": size, "copies": copies} for key, size, copies in rows]
        say_json(shown)
        return
    show_rows(
        ["key", "size", "copies"], [[show_argument(key), show_size(size), str(copies)] for key, size, copies in rows]
    )


@click.command()
@click.argument("keys", type=KeyArgument(), metavar="KEY...", nargs=-1, required=True)
@common_options
def rm(common: Common, keys: tuple[bytes, ...]) -> None:
    """Forgets objects."""

    async def remove(store: aio.Store) -> list[bytes]:
        return [key for key in keys if not await store.remove(key)]

    missing = use_store(common, remove)
    if missing:
        fail(f"no object {', '.join(show_key(encode_key(key)) for key in missing)}")


async def _list(client: MasterClient, prefix: bytes, common: Common) -> list[tuple[bytes, int, int]]:
    rows: list[tuple[bytes, int, int]] = []
    more = True
    while more:
        after = rows[-1][0] if rows else b""
        page, more = await client.list(prefix, after, limit=PAGE_KEYS, deadline=common.deadline())
        rows += page
    return rows
