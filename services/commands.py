"""The services as commands of `larder`, found by its entry points. Each is imported only when it is run."""

from collections.abc import Sequence
from importlib import import_module

import click


def _service(name: str, module: str, says: str) -> click.Command:
    def start(argv: Sequence[str]) -> None:
        raise SystemExit(import_module(module).main(argv, called=f"larder {name}"))

    arguments = click.Argument(["argv"], nargs=-1, type=click.UNPROCESSED)
    everything = {"ignore_unknown_options": True, "help_option_names": [], "allow_interspersed_args": False}
    return click.Command(name, callback=start, params=[arguments], help=says, context_settings=everything)


master = _service("master", "services.master.cli", "Runs the master. Its settings: larder master --help")
node = _service("node", "services.storage_node.cli", "Runs a storage node. Its settings: larder node --help")
proxy = _service("proxy", "services.proxy.cli", "Runs the proxy. Its settings: larder proxy --help")
