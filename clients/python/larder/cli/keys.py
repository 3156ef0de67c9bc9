"""`larder ls`, `larder stat` and `larder rm`: objects by their keys, without their bytes.

Nothing here holds a list of all keys: they come in pages.
"""

from collections.abc import AsyncIterator
from typing import Any, Final

import click

from larder.cli.common import Common, KeyArgument, ask_master, common_options, fail, say_json
from larder.cli.showing import show_argument, show_rows, show_size, show_span
from larder.errors import show_key
from larder.facts import Facts
from larder.keys import Page, encode_key
from larder.rpc import MasterClient
from larder.words import counted

Row = tuple[bytes, int, int]
"""Key, size, copies."""
_LS_HEAD: Final = f"{'size':>10}  {'copies':>6}  key"


@click.command()
@click.argument("prefix", type=KeyArgument(), default="")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="So many at most.")
@common_options
def ls(common: Common, prefix: bytes, limit: int | None) -> None:
    """Keys that begin with PREFIX, in order, with their sizes and copies. With --format json, one line per key."""

    async def run(client: MasterClient) -> None:
        left, has_head = limit, common.is_json
        async for page in pages(client, prefix, common):
            if not has_head:
                click.echo(_LS_HEAD)
                has_head = True
            rows = page[:left]
            for key, size, copies in rows:
                if common.is_json:
                    say_json({"key": show_argument(key), "size": size, "copies": copies})
                else:
                    click.echo(f"{show_size(size):>10}  {copies:>6}  {show_argument(key)}")
            if left is not None and (left := left - len(rows)) <= 0:
                break
        if not has_head:
            click.echo(_LS_HEAD)

    ask_master(common, run)


async def pages(client: MasterClient, prefix: bytes, common: Common) -> AsyncIterator[list[Row]]:
    page = Page(prefix)
    while page.more:
        if rows := await client.list(page, deadline=common.deadline()):
            yield rows


@click.command()
@click.argument("keys", type=KeyArgument(), metavar="KEY...", nargs=-1, required=True)
@common_options
def stat(common: Common, keys: tuple[bytes, ...]) -> None:
    """All that is known about objects: places, sizes, checksums, pin, lease and time to live. Does not count as a use.

    With --format json, one line per object. Exit status 1: some object is not there.
    """
    names = [encode_key(key) for key in keys]
    known = ask_master(common, lambda client: client.stat(names, deadline=common.deadline()))
    for facts in filter(None, known.objects):
        if common.is_json:
            say_json(_facts_json(facts))
        else:
            _show_facts(facts)
    _say_missing([name for name, facts in zip(names, known.objects, strict=True) if facts is None])


def _facts_json(facts: Facts) -> dict[str, Any]:
    return {
        "key": show_argument(facts.key),
        "size": facts.size,
        "copies": facts.copies,
        "copies_wanted": facts.wanted,
        "pin": facts.pin,
        "ttl_ms": facts.ttl_ms or None,
        "lease_ms": facts.lease_ms,
        "depth": facts.depth,
        "write_id": facts.write_id,
        "slices": [
            {
                "length": part.length,
                "checksum": f"{part.checksum:016x}" if part.checksum else None,
                "copies": [
                    {
                        "node": copy.segment.node_id,
                        "answers": facts.answers(copy.segment),
                        "host": copy.segment.host_id,
                        "offset": copy.offset,
                        "shm_path": copy.segment.shm_path,
                        "engine": copy.segment.engine_endpoint or None,
                    }
                    for copy in part.copies
                ],
            }
            for part in facts.slices
        ],
    }


def _show_facts(facts: Facts) -> None:
    life = f"for {show_span(facts.ttl_ms / 1000)} more" if facts.ttl_ms else "no end"
    lease = f"for {show_span(facts.lease_ms / 1000)} at most" if facts.lease_ms else "by nobody"
    state = counted(facts.copies, "copy", "copies") if facts.copies else "cannot be read now: no copy on a live node"
    click.echo(show_argument(facts.key))
    click.echo(f"  {show_size(facts.size)} ({facts.size:,} bytes), {state} of {facts.wanted} wanted, pin {facts.pin}")
    click.echo(f"  time to live: {life}; being read {lease}; block {facts.depth} of its prompt")
    rows = []
    for number, part in enumerate(facts.slices):
        checksum = f"{part.checksum:016x}" if part.checksum else "none"
        for copy in part.copies:
            node = copy.segment.node_id + ("" if facts.answers(copy.segment) else " (does not answer)")
            engine = copy.segment.engine_endpoint or "none"
            rows.append([f"  {number}", show_size(part.length), checksum, node, f"{copy.offset:,}", engine])
    show_rows(["  slice", "size", "checksum", "node", "offset", "engine"], rows)


@click.command()
@click.argument("keys", type=KeyArgument(), metavar="[KEY...]", nargs=-1)
@click.option("--prefix", type=KeyArgument(), help="All objects whose keys begin with that, too.")
@click.option("--yes", is_flag=True, help="Do not ask before --prefix removes.")
@common_options
def rm(common: Common, keys: tuple[bytes, ...], prefix: bytes | None, yes: bool) -> None:
    """Forgets objects. Exit status 1: some KEY was not there."""
    if not keys and prefix is None:
        raise click.UsageError("give keys, or --prefix")
    if prefix is not None and not yes:
        _ask_whether(common, prefix)
    names = list(dict.fromkeys(encode_key(key) for key in keys))

    async def run(client: MasterClient) -> tuple[list[bytes], int]:
        were = await client.remove(names, deadline=common.deadline()) if names else []
        count = sum(were)
        if prefix is not None:
            async for page in pages(client, prefix, common):
                count += sum(await client.remove([key for key, _, _ in page], deadline=common.deadline()))
        return [name for name, was in zip(names, were, strict=True) if not was], count

    missing, count = ask_master(common, run)
    if common.is_json:
        say_json({"removed": count, "missing": [show_argument(name) for name in missing]})
    elif prefix is not None:
        click.echo(f"{counted(count, 'object')} removed")
    _say_missing(missing)


def _ask_whether(common: Common, prefix: bytes) -> None:
    async def count(client: MasterClient) -> tuple[int, int]:
        objects = size = 0
        async for page in pages(client, prefix, common):
            objects += len(page)
            size += sum(length for _, length, _ in page)
        return objects, size

    objects, size = ask_master(common, count)
    which = f"whose keys begin with {show_argument(prefix)}" if prefix else "there are"
    try:
        click.confirm(f"Remove the {counted(objects, 'object')} of {show_size(size)} {which}?", abort=True, err=True)
    except click.Abort:
        fail("nothing was removed; --yes removes without asking")


def _say_missing(names: list[bytes]) -> None:
    if names:
        fail(f"no object {', '.join(show_key(name) for name in names)}")
