"""The `larder` command: look into a cluster, put and get by hand. The only module that knows click and rich.

Exit status 0 is done, 1 is a miss or an error (one line on stderr), 2 is a wrong command line.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypeVar

import click
from rich.console import Console
from rich.table import Table

from larder import aio
from larder.errors import DeadlineExceeded, LarderError, show_key
from larder.keys import encode_key
from larder.options import CONFIG_FILE_VARIABLE, MOONCAKE_VARIABLE, resolve
from larder.rpc import MasterClient
from larder.stats import Stats
from larder.v1 import master_pb2

T = TypeVar("T")
DEFAULT_MASTER: Final = "127.0.0.1:50001"
CALL_S: Final = 10.0
PAGE_KEYS: Final = 10_000
POLL_S: Final = 0.5
ABSENT_S: Final = 60.0
"""A node that a restarted master has not seen for so long has ended."""
STUCK_S: Final = 3.0
"""A drain of which nothing finds room for so long is not going to end by itself."""


def _version() -> str:
    for name in ("larder", "larder-server"):  # the client by itself, or with the services
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="larder")
@click.option("--master", metavar="HOST:PORT", help="Default: the configuration file's, or 127.0.0.1:50001.")
@click.option("--format", "format_", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def cli(context: click.Context, master: str | None, format_: str) -> None:
    """Looks into a Larder cluster."""
    is_configured = any(os.environ.get(name) for name in (CONFIG_FILE_VARIABLE, MOONCAKE_VARIABLE))
    context.obj = master or (None if is_configured else DEFAULT_MASTER), format_


@cli.command()
@click.pass_obj
def status(obj: tuple[str | None, str]) -> None:
    """The master, its nodes and what they hold."""
    master, format_ = obj
    reply = _ask(master, lambda client: client.status(deadline=time.monotonic() + CALL_S))
    if format_ == "json":
        click.echo(json.dumps(_status_json(reply)))
        return
    console = Console(soft_wrap=True)
    console.print(
        f"master of version {reply.version}, epoch {reply.epoch}: {reply.objects} objects of "
        f"{_size(reply.object_bytes)}, {reply.writes_in_flight} writes in flight"
    )
    table = Table("node", "zone", "state", "live", "reserved", "quarantined", "free", "capacity", "copies", "engine")
    for node in reply.nodes:
        for part in node.segments:
            sizes = (part.live_bytes, part.reserved_bytes, part.quarantined_bytes, part.free_bytes)
            capacity, engine = _size(part.segment.capacity_bytes), part.segment.engine_endpoint or "none"
            table.add_row(node.node_id, node.zone, _state(node), *map(_size, sizes), capacity, str(part.copies), engine)
    console.print(table)


@cli.command()
@click.argument("prefix", default="")
@click.pass_obj
def ls(obj: tuple[str | None, str], prefix: str) -> None:
    """Keys that begin with PREFIX, with their sizes and copies."""
    master, format_ = obj
    rows = _ask(master, lambda client: _collect(_list(client, prefix.encode())))
    if format_ == "json":
        click.echo(json.dumps([{"key": _text(key), "size": size, "copies": copies} for key, size, copies in rows]))
        return
    table = Table("key", "size", "copies")
    for key, size, copies in rows:
        table.add_row(_text(key), _size(size), str(copies))
    Console(soft_wrap=True).print(table)


@cli.command()
@click.argument("key")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--copies", default=1, show_default=True)
@click.option("--pin", type=click.Choice(["soft", "hard"]), help="Evicted last, or never.")
@click.option("--ttl", "ttl_s", type=float, help="Seconds after which it is gone.")
@click.pass_obj
def put(
    obj: tuple[str | None, str],
    key: str,
    file: Path,
    copies: int,
    pin: Literal["soft", "hard"] | None,
    ttl_s: float | None,
) -> None:
    """Stores FILE (- is standard input) under KEY."""
    data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    result = _use(obj[0], lambda store: store.put(key, data, copies=copies, pin=pin, ttl_s=ttl_s))
    facts = {"key": key, "bytes": len(data), "copies": result.copies, "existed": result.existed}
    said = "existed" if result.existed else f"{_size(len(data))}, copies: {result.copies}"
    click.echo(json.dumps(facts) if obj[1] == "json" else f"{key}: {said}")


@cli.command()
@click.argument("key")
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def get(obj: tuple[str | None, str], key: str, file: Path | None) -> None:
    """Writes the object to FILE, or to standard output."""
    data = _use(obj[0], lambda store: store.get(key))
    if data is None:
        _fail(f"no object {show_key(encode_key(key))}")
    if file is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        file.write_bytes(data)


@cli.command()
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@click.pass_obj
def rm(obj: tuple[str | None, str], keys: tuple[str, ...]) -> None:
    """Forgets objects."""

    async def remove(store: aio.Store) -> list[str]:
        return [key for key in keys if not await store.remove(key)]

    missing = _use(obj[0], remove)
    if missing:
        _fail(f"no object {', '.join(show_key(encode_key(key)) for key in missing)}")


@cli.command()
@click.argument("node")
@click.option("--cancel", is_flag=True, help="The node stays after all.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until the node is empty and ends.")
@click.option("--timeout", "timeout_s", default=3600.0, show_default=True, help="Seconds to wait; the drain goes on.")
@click.pass_obj
def drain(obj: tuple[str | None, str], node: str, cancel: bool, wait: bool, timeout_s: float) -> None:
    """Moves everything off storage node NODE, whose process then ends. Nothing is lost, readers notice nothing."""

    async def run(client: MasterClient) -> None:
        await client.drain(node, cancel=cancel, deadline=time.monotonic() + CALL_S)
        if wait and not cancel:
            await _drained(client, node, time.monotonic() + timeout_s)

    _ask(obj[0], run)
    done = "stays" if cancel else "is drained, its process ends" if wait else "is being drained"
    click.echo(json.dumps({"node": node, "result": done}) if obj[1] == "json" else f"{node} {done}")


async def _drained(client: MasterClient, node_id: str, deadline: float) -> None:
    """Returns when the node has gone; raises LarderError where it cannot go, or the time is over."""
    epoch, state, said, stuck_since, absent_since = None, "", None, None, None
    while True:
        reply = await client.status(deadline=min(deadline, time.monotonic() + CALL_S))
        now = time.monotonic()
        found = next((node for node in reply.nodes if node.node_id == node_id), None)
        if found is not None or epoch is None:
            epoch, absent_since = reply.epoch, None
        if found is None and reply.epoch == epoch:
            if state == "suspect":
                raise LarderError(f"{node_id} was lost before it was empty; what had no other copy is lost with it")
            return
        if found is None:  # the master was restarted
            absent_since = absent_since or now
            if now - absent_since > ABSENT_S:
                raise LarderError(
                    f"{node_id} did not come back to the restarted master within {ABSENT_S:.0f} s: "
                    "its log says whether it ended empty, or was lost before"
                )
        else:
            state, left = found.state, found.drain_objects
            if not found.draining:
                raise LarderError(f"the drain of {node_id} was called off")
            is_stuck = 0 < left == found.drain_without_room and left == said  # else room is being made, bit by bit
            stuck_since = (stuck_since or now) if is_stuck else None
            if stuck_since is not None and now - stuck_since > STUCK_S:
                raise LarderError(
                    f"{left} objects of {node_id} find no room on other nodes; add nodes, remove objects, or stop with "
                    f"larder drain --cancel {node_id}: until then the drain goes on by itself"
                )
            if left != said:
                click.echo(f"{node_id}: {left} objects left", err=True)
                said = left
        if now >= deadline:
            raise DeadlineExceeded(f"{node_id} is not empty yet; the drain goes on by itself")
        await asyncio.sleep(POLL_S)


def main() -> None:
    """The entry point."""
    try:
        cli()
    except (LarderError, OSError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    click.echo(f"larder: {message}", err=True)
    sys.exit(1)


def _use(master: str | None, call: Callable[[aio.Store], Awaitable[T]]) -> T:
    """Runs a call of a store."""

    async def run() -> T:
        async with aio.connect(master) as store:
            return await call(store)

    return asyncio.run(run())


def _ask(master: str | None, call: Callable[[MasterClient], Awaitable[T]]) -> T:
    """Runs a call that is the operator's, and so no store's."""

    async def run() -> T:
        options = resolve(master)
        client = MasterClient(options.masters, Stats())
        try:
            return await call(client)
        finally:
            await client.close()

    return asyncio.run(run())


async def _list(client: MasterClient, prefix: bytes) -> AsyncIterator[tuple[bytes, int, int]]:
    after, more = b"", True
    while more:
        rows, more = await client.list(prefix, after, limit=PAGE_KEYS, deadline=time.monotonic() + CALL_S)
        for row in rows:
            yield row
        after = rows[-1][0] if rows else after


async def _collect(rows: AsyncIterator[tuple[bytes, int, int]]) -> list[tuple[bytes, int, int]]:
    return [row async for row in rows]


def _status_json(reply: master_pb2.StatusReply) -> dict[str, Any]:
    return {
        "version": reply.version,
        "epoch": reply.epoch,
        "objects": reply.objects,
        "object_bytes": reply.object_bytes,
        "writes_in_flight": reply.writes_in_flight,
        "slice_bytes": reply.slice_bytes,
        "nodes": [
            {
                "node_id": node.node_id,
                "host_id": node.host_id,
                "zone": node.zone,
                "state": node.state,
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


def _state(node: master_pb2.NodeStatus) -> str:
    if not node.draining:
        return node.state
    room = f", {node.drain_without_room} find no room" if node.drain_without_room else ""
    return f"{node.state}, draining: {node.drain_objects} objects left{room}"


def _text(key: bytes) -> str:
    """A key as the command line takes it where it is text, else in hexadecimal digits."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return f"0x{key.hex()}"
    return text if text.isprintable() else f"0x{key.hex()}"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value.is_integer() else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
