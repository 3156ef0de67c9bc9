"""The `larder` command. Commands are in modules of their own, what they share is in common.py, and app.py finds them.

Needs click and rich, which a client that is only imported does not: nothing else in larder imports this package.
"""

import sys


def main() -> None:
    """The entry point."""
    try:
        from larder.cli.app import cli
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(f"larder: the package {error.name} is missing: pip install 'larder[cli]'")
    except KeyboardInterrupt:
        sys.exit(130)
    cli(prog_name="larder")
