"""The `larder` command: look into a cluster, put and get by hand.

Exit status 0 is done, 1 is a miss or an error (one line on stderr), 2 is a wrong command line.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypeVar

import click

from larder import aio
from larder.draining import drained, goes_on
from larder.errors import LarderError, show_key
from larder.keys import encode_key
from larder.masters import SURVEY_S, Seen, in_charge, survey, warnings
from larder.options import CONFIG_FILE_VARIABLE, MASTER_VARIABLE, MOONCAKE_VARIABLE, Options, resolve
from larder.rpc import MasterClient
from larder.showing import key_of, show_argument, show_rows, show_size, state_of, status_json
from larder.stats import Stats
from larder.v1 import master_pb2

T = TypeVar("T")
DEFAULT_MASTER: Final = "127.0.0.1:50001"
TIMEOUT_S: Final = 5.0
PAGE_KEYS: Final = 10_000


def _version() -> str:
    for name in ("larder", "larder-server"):  # the client by itself, or with the services
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


class _Key(click.ParamType):  # type: ignore[type-arg]  # it is generic from click 8.2 on
    """A key as `larder ls` shows it."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        return value if isinstance(value, bytes) else key_of(value)


@dataclass
class _Common:
    """What can be said before and after the command's name; the last word counts."""

    master: str | None = None
    format: str = "table"
    timeout: float = TIMEOUT_S

    @property
    def is_json(self) -> bool:
        return self.format == "json"

    def deadline(self) -> float:
        return time.monotonic() + self.timeout

    def options(self) -> Options:
        """Raises InvalidArgument."""
        variables = (MASTER_VARIABLE, CONFIG_FILE_VARIABLE, MOONCAKE_VARIABLE)
        is_configured = any(os.environ.get(name) for name in variables)
        return resolve(self.master or (None if is_configured else DEFAULT_MASTER), timeout_s=self.timeout)


def _note(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    common = context.ensure_object(_Common)
    if value is not None:
        setattr(common, str(parameter.name), value)


_MASTER: Final = click.option(
    "--master",
    metavar="HOST:PORT[,...]",
    expose_value=False,
    callback=_note,
    help=f"Default: LARDER_MASTER, the configuration file's, or {DEFAULT_MASTER}.",
)
_FORMAT: Final = click.option(
    "--format", type=click.Choice(["table", "json"]), expose_value=False, callback=_note, help="Default: table."
)
_TIMEOUT: Final = click.option(
    "--timeout",
    type=click.FloatRange(0, 3600, min_open=True),
    metavar="SECONDS",
    expose_value=False,
    callback=_note,
    help=f"How long the cluster may take to answer. Default: {TIMEOUT_S:g}.",
)


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    return _MASTER(_FORMAT(_TIMEOUT(click.pass_obj(command))))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="larder")
@_MASTER
@_FORMAT
@_TIMEOUT
def cli() -> None:
    """Looks into a Larder cluster.

    A KEY is text, or 0x and hexadecimal digits for any bytes, as ls shows it.
    """


@cli.command()
@_common
def status(common: _Common) -> None:
    """The master, its nodes and what they hold."""
    reply, seen = asyncio.run(_status(common))
    for warning in warnings(seen):
        click.echo(f"larder: warning: {warning}", err=True)
    if common.is_json:
        masters = [asdict(each) for each in seen]
        click.echo(json.dumps(status_json(reply) | {"masters": masters, "warnings": warnings(seen)}))
        return
    click.echo(
        f"master of version {reply.version}, epoch {reply.epoch}: {reply.objects} objects of "
        f"{show_size(reply.object_bytes)}, {reply.writes_in_flight} writes in flight"
    )
    if reply.rest_left_ms:
        rested_s, left_s = reply.rested_ms / 1000, reply.rest_left_ms / 1000
        click.echo(
            f"what is free has rested for {rested_s:.1f} s and does for {left_s:.1f} s more: "
            "writes of before the master's start may still land there"
        )
    rows = []
    for node in reply.nodes:
        for part in node.segments:
            sizes = (part.live_bytes, part.reserved_bytes, part.quarantined_bytes, part.free_bytes)
            capacity, engine = show_size(part.segment.capacity_bytes), part.segment.engine_endpoint or "none"
            named = [node.node_id, node.zone or "none", state_of(node)]
            rows.append([*named, *map(show_size, sizes), capacity, str(part.copies), engine])
    names = ["node", "zone", "state", "live", "reserved", "quarantined", "free", "capacity", "copies", "engine"]
    show_rows(names, rows)


async def _status(common: _Common) -> tuple[master_pb2.StatusReply, list[Seen]]:
    """What the master in charge says; where none is, the first that answers."""
    deadline, masters = common.deadline(), common.options().masters
    seen = await survey(masters, min(SURVEY_S, common.timeout / 2))
    chosen = in_charge(seen) or next((each for each in seen if not each.trouble), None)
    client = MasterClient([chosen.address] if chosen else masters, Stats())
    try:
        return await client.status(deadline=deadline), seen
    finally:
        await client.close()


@cli.command()
@click.argument("prefix", type=_Key(), default="")
@_common
def ls(common: _Common, prefix: bytes) -> None:
    """Keys that begin with PREFIX, with their sizes and copies."""
    rows = _ask(common, lambda client: _list(client, prefix, common))
    if common.is_json:
        shown = [{"key": show_argument(key), "size": size, "copies": copies} for key, size, copies in rows]
        click.echo(json.dumps(shown))
        return
    show_rows(
        ["key", "size", "copies"], [[show_argument(key), show_size(size), str(copies)] for key, size, copies in rows]
    )


@cli.command()
@click.argument("key", type=_Key())
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--copies", default=1, show_default=True)
@click.option("--pin", type=click.Choice(["soft", "hard"]), help="Evicted last, or never.")
@click.option("--ttl", "ttl_s", type=float, help="Seconds after which it is gone.")
@_common
def put(
    common: _Common,
    key: bytes,
    file: Path,
    copies: int,
    pin: Literal["soft", "hard"] | None,
    ttl_s: float | None,
) -> None:
    """Stores FILE (- is standard input) under KEY. What exists stays as it is, its pin and time to live too."""
    data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    result = _use(common, lambda store: store.put(key, data, copies=copies, pin=pin, ttl_s=ttl_s))
    shown = show_argument(key)
    said = f"{show_size(len(data))}, copies: {result.copies}"
    if result.existed:
        said = "existed, and stays as it is" + (": neither pin nor time to live changes" if pin or ttl_s else "")
    facts = {"key": shown, "bytes": len(data), "copies": result.copies, "existed": result.existed}
    click.echo(json.dumps(facts) if common.is_json else f"{shown}: {said}")


@cli.command()
@click.argument("key", type=_Key())
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@_common
def get(common: _Common, key: bytes, file: Path | None) -> None:
    """Writes the object to FILE, or to standard output."""
    data = _use(common, lambda store: store.get(key))
    if data is None:
        _fail(f"no object {show_key(encode_key(key))}")
    if file is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        file.write_bytes(data)


@cli.command()
@click.argument("keys", type=_Key(), metavar="KEY...", nargs=-1, required=True)
@_common
def rm(common: _Common, keys: tuple[bytes, ...]) -> None:
    """Forgets objects."""

    async def remove(store: aio.Store) -> list[bytes]:
        return [key for key in keys if not await store.remove(key)]

    missing = _use(common, remove)
    if missing:
        _fail(f"no object {', '.join(show_key(encode_key(key)) for key in missing)}")


@cli.command()
@click.argument("node")
@click.option("--cancel", is_flag=True, help="The node stays after all.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until the node is empty and ends.")
@click.option(
    "--timeout", "wait_s", default=3600.0, show_default=True, metavar="SECONDS", help="To wait; the drain goes on."
)
@_MASTER
@_FORMAT
@click.pass_obj
def drain(common: _Common, node: str, cancel: bool, wait: bool, wait_s: float) -> None:
    """Moves everything off storage node NODE, whose process then ends. Nothing is lost, readers notice nothing."""

    if not node.isascii():
        raise click.BadParameter(f"{node!a} is not a node's name")

    async def run(client: MasterClient) -> None:
        await client.drain(node, cancel=cancel, deadline=common.deadline())
        if wait and not cancel:
            await drained(client, node, time.monotonic() + wait_s)

    try:
        _ask(common, run)
    except KeyboardInterrupt:
        _fail("interrupted; " + ("it may have been called off" if cancel else goes_on(node)), status=130)
    done = "stays" if cancel else "is drained, its process ends" if wait else "is being drained"
    click.echo(json.dumps({"node": node, "result": done}) if common.is_json else f"{node} {done}")


def main() -> None:
    """The entry point."""
    try:
        cli()
    except (LarderError, OSError) as error:
        _fail(str(error))


def _fail(message: str, status: int = 1) -> NoReturn:
    click.echo(f"larder: {message}", err=True)
    sys.exit(status)


def _use(common: _Common, call: Callable[[aio.Store], Awaitable[T]]) -> T:
    """Runs a call of a store."""

    async def run() -> T:
        async with aio.Store(common.options()) as store:
            return await call(store)

    return asyncio.run(run())


def _ask(common: _Common, call: Callable[[MasterClient], Awaitable[T]]) -> T:
    """Runs a call that is the operator's, and so no store's."""

    async def run() -> T:
        client = MasterClient(common.options().masters, Stats())
        try:
            return await call(client)
        finally:
            await client.close()

    return asyncio.run(run())


async def _list(client: MasterClient, prefix: bytes, common: _Common) -> list[tuple[bytes, int, int]]:
    rows: list[tuple[bytes, int, int]] = []
    more = True
    while more:
        after = rows[-1][0] if rows else b""
        page, more = await client.list(prefix, after, limit=PAGE_KEYS, deadline=common.deadline())
        rows += page
    return rows
