"""The `larder` command. Commands are in modules of their own, what they share is in common.py, and app.py finds them.

Needs click and rich, which the client alone does not: nothing else in larder imports this package.
"""

import os
import sys


def main() -> None:
    """The entry point."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed; a socket could take its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    try:
        from larder.cli.app import cli
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(f"larder: the package {error.name} is missing: pip install 'larder[cli]'")
    except KeyboardInterrupt:
        sys.exit(130)
    cli(prog_name="larder")
