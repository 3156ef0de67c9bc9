"""The command `larder` itself: where its commands are found, and what becomes of what they raise.

Its own commands are named here and loaded on demand. Others come from installed distributions, as entry points of the
group `larder.commands`, each a click.Command: that is how the services, which the client never imports, add theirs.
"""

import difflib
import os
import sys
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import click

from larder.cli.common import BROKEN_PIPE, INTERRUPTED, fail, format_option, master_option, timeout_option
from larder.errors import LarderError
from larder.version import own_version

GROUP: Final = "larder.commands"
OWN: Final = {
    "status": "larder.cli.status",
    "top": "larder.cli.top",
    "ls": "larder.cli.keys",
    "stat": "larder.cli.keys",
    "put": "larder.cli.objects",
    "get": "larder.cli.objects",
    "rm": "larder.cli.keys",
    "verify": "larder.cli.verify",
    "drain": "larder.cli.drain",
    "doctor": "larder.cli.doctor",
    "bench": "larder.cli.bench",
    "completion": "larder.cli.completion",
}
"""Where each command is, under its own name."""
OF_SERVICES: Final = ("master", "node", "proxy")


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in OWN}


class Commands(click.Group):
    """Loads the command that is asked for, and no other."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*OWN, *sorted(_installed())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in OWN:
            return getattr(import_module(OWN[cmd_name]), cmd_name)  # type: ignore[no-any-return]
        point = _installed().get(cmd_name)
        if point is None:
            return None
        try:
            return point.load()  # type: ignore[no-any-return]
        except (ImportError, AttributeError) as error:
            broken = f"larder {cmd_name} is installed but cannot be loaded: {error}"
            return click.Command(cmd_name, callback=lambda: fail(broken), add_help_option=False, short_help=broken)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in OF_SERVICES and name not in _installed():
            ctx.fail(f"larder {name} is the services', which are not installed: pip install larder-server")
        if not name.startswith("-") and name not in self.list_commands(ctx):
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            ctx.fail(f"no such command {name!r}" + (f"; is {near[0]} meant?" if near else ""))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:  # whoever read the output has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BROKEN_PIPE)
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED)
        except (LarderError, OSError) as error:
            fail(str(error))


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done; 1 an error, or no such object; 2 a wrong command line; 3 done, and what was looked at "
    "is not in order; 130 interrupted.",
)
@click.version_option(own_version(), prog_name="larder")
@master_option
@format_option
@timeout_option
def cli() -> None:
    """Looks into a Larder cluster.

    A KEY is text, or 0x and hexadecimal digits for any bytes, as ls shows it.
    """
