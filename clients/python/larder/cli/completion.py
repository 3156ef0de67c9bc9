"""`larder completion`: what a shell needs to complete the command's words."""

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

_CLASSES = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command()
@click.argument("shell", type=click.Choice(list(_CLASSES)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Prints the code that completes `larder` in a SHELL.

    bash: eval "$(larder completion bash)" in ~/.bashrc; zsh the same in ~/.zshrc; fish: larder completion fish | source
    in ~/.config/fish/config.fish.
    """
    click.echo(_CLASSES[shell](context.find_root().command, {}, "larder", "_LARDER_COMPLETE").source())
