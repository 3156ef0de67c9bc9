"""What every command shares: options, exit statuses, keys as arguments, and how a call of the cluster is run."""

import asyncio
import json
import math
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

import click

from larder import aio
from larder.cli.showing import key_of
from larder.options import CONFIG_FILE_VARIABLE, MASTER_VARIABLE, MOONCAKE_VARIABLE, Options, resolve
from larder.rpc import MasterClient
from larder.stats import Stats

T = TypeVar("T")
DEFAULT_MASTER: Final = "127.0.0.1:50001"
TIMEOUT_S: Final = 5.0

FAILED: Final = 1
"""An error, a deadline that passed, or no such object: one line on stderr."""
WRONG_USE: Final = 2
FOUND_WRONG: Final = 3
"""The command did its work, and found something wrong."""
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
"""What a shell reports for a process that wrote to a closed pipe."""


class KeyArgument(click.ParamType):  # type: ignore[type-arg]  # it is generic from click 8.2 on
    """A key as `larder ls` shows it."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        return value if isinstance(value, bytes) else key_of(value)


class Seconds(click.FloatRange):
    """A duration: NaN is refused, which no range does."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


@dataclass
class Common:
    """Options allowed both before and after the command's name; the last one counts."""

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
    common = context.ensure_object(Common)
    if value is not None:
        setattr(common, str(parameter.name), value)


master_option: Final = click.option(
    "--master",
    metavar="HOST:PORT[,...]",
    expose_value=False,
    callback=_note,
    help=f"Default: LARDER_MASTER, the configuration file's, or {DEFAULT_MASTER}.",
)
format_option: Final = click.option(
    "--format", type=click.Choice(["table", "json"]), expose_value=False, callback=_note, help="Default: table."
)
timeout_option: Final = click.option(
    "--timeout",
    type=Seconds(0, 3600, min_open=True),
    metavar="SECONDS",
    expose_value=False,
    callback=_note,
    help=f"How long the cluster may take to answer. Default: {TIMEOUT_S:g}.",
)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """For a command whose first parameter is a Common."""
    return master_option(format_option(timeout_option(click.make_pass_decorator(Common, ensure=True)(command))))


def fail(message: str, status: int = FAILED) -> NoReturn:
    click.echo(f"larder: {message}", err=True)
    raise click.exceptions.Exit(status)


def say_json(facts: Any) -> None:
    """One line."""
    click.echo(json.dumps(facts))


def use_store(common: Common, call: Callable[[aio.Store], Awaitable[T]]) -> T:
    """Runs a call of a store."""

    async def run() -> T:
        async with aio.Store(common.options()) as store:
            return await call(store)

    return asyncio.run(run())


def ask_master(common: Common, call: Callable[[MasterClient], Awaitable[T]]) -> T:
    """Runs an operator's call, which needs no store."""

    async def run() -> T:
        async with MasterClient(common.options().masters, Stats()) as client:
            return await call(client)

    return asyncio.run(run())
