"""Writes docs/configuration.md from what programs take: settings of services, options of clients, flags of commands.

`python -m docs.reference` (make docs) writes it; tests/docs keeps it in step. Nothing is described here that is
described where it is defined.
"""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import click
from annotated_types import Ge, Gt, Le, Lt
from larder import options
from larder.cli.app import cli
from larder.mover import TRANSPORTS
from larder.vllm import settings as connector
from pydantic import ByteSize, SecretStr
from pydantic.fields import FieldInfo

from services.common.settings import ServiceSettings
from services.master.config import MasterSettings
from services.proxy.config import ProxySettings
from services.storage_node.cli import Settings as NodeSettings

PAGE: Final = Path(__file__).with_name("configuration.md")
SERVICES: Final[Mapping[str, tuple[str, type[ServiceSettings]]]] = {
    "master": ("master", MasterSettings),
    "node": ("storage-node", NodeSettings),
    "proxy": ("proxy", ProxySettings),
}
CLIENT_DEFAULTS: Final = {
    "timeout_s": options.TIMEOUT_S, "verify": True, "transports": list(TRANSPORTS), "zone": "",
}  # fmt: skip
INTRODUCTION: Final = """# Configuration

Every setting of [master](#master), [storage node](#storage-node), [proxy](#proxy), [client](#client),
[vLLM connector](#vllm-connector) and [commands](#commands). An unknown name is refused everywhere, and the nearest
known one is named. This page is written by `make docs` from the programs themselves.

A service takes each setting from its flag, else from the environment, else from the YAML file that `--config` names,
else the default. `--metrics-port` of the master is `LARDER_MASTER_METRICS_PORT` in the environment and `metrics-port`
in the file. Sizes are bytes, or numbers with a unit: `512MiB` (powers of 1,024), `2GB` (powers of 1,000). Where several
values can be given, the flag is repeated, or they are separated by commas.
"""


def page() -> str:
    parts = [INTRODUCTION]
    parts += [_service(name, prog, settings) for name, (prog, settings) in SERVICES.items()]
    parts += [_client(), _connector(), _commands()]
    return "\n".join(parts)


def _service(name: str, prog: str, settings: type[ServiceSettings]) -> str:
    rows = []
    for field, info in settings.model_fields.items():
        flag = f"`--{field.replace('_', '-')}`"
        others = [f"`{variable}`" for variable, filled in settings.other_env.items() if filled == field]
        said = "; ".join(filter(None, [_cell(info.description or ""), " also ".join(["", *others]).strip()]))
        rows.append([flag, _values(info), _default(info), said])
    what = " ".join((settings.__doc__ or "").split("\n\n")[0].split())
    called = f"`larder {name}`, also `{prog}`. {what} Variables begin with `LARDER_{prog.upper().replace('-', '_')}_`."
    return f"## {prog.replace('-', ' ').capitalize()}\n\n{called}\n\n" + _table(["flag", "takes", "default", ""], rows)


def _client() -> str:
    rows = [
        [f"`{name}`", _shown(CLIENT_DEFAULTS[name]) if name in CLIENT_DEFAULTS else "", _cell(said)]
        for name, said in options.HELP.items()
    ]
    return f"""## Client

Arguments of `larder.connect`, and keys of the file (YAML or JSON) that `{options.CONFIG_FILE_VARIABLE}` names.
Arguments win, then `{options.MASTER_VARIABLE}` (the master) and `{options.PORTS_VARIABLE}` (the engine's ports), then
that file. Without one the master is `master_server_address` in the file that `{options.MOONCAKE_VARIABLE}` names,
which a Mooncake set-up has.

""" + _table(["name", "default", ""], rows)


def _connector() -> str:
    defaults = {each.name: each.default for each in fields(connector.ConnectorSettings)}
    rows = [
        [
            f"`{name}`",
            "required" if defaults[name] is MISSING else _shown(defaults[name] or CLIENT_DEFAULTS.get(name, "")),
            _cell(said),
        ]
        for name, said in connector.HELP.items()
        if name != "timeout_s"
    ]
    rows.append(["`timeout_s`", "", _cell(connector.HELP["timeout_s"])])
    return """## vLLM connector

Keys of `kv_connector_extra_config` in vLLM's `--kv-transfer-config`; see [vLLM](vllm.md).

""" + _table(["name", "default", ""], rows)


def _commands() -> str:
    """Those of `larder`, but for the services."""
    context = click.Context(cli, info_name="larder")
    common = {option.name for option in cli.params}
    parts = [
        f"""## Commands

{_options(option for option in cli.params)}
These go before or after the command's name. {" ".join((cli.epilog or "").split())}
"""
    ]
    for name, command in _leaves(cli, context):
        with click.Context(command, info_name=name) as inner:
            arguments = " ".join(piece for each in command.params for piece in each.get_usage_pieces(inner))
        own = _options(option for option in command.params if option.name not in common)
        heading = " ".join(f"larder {name} {arguments}".split())
        parts.append(f"### `{heading}`\n\n{_prose(command.help)}\n\n{own}".rstrip() + "\n")
    return "\n".join(parts)


def _leaves(group: click.Group, context: click.Context, prefix: str = "") -> Iterable[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _leaves(command, context, f"{prefix}{name} ")
        elif command is not None and not command.hidden and (prefix or name not in SERVICES):
            yield f"{prefix}{name}", command


def _options(parameters: Iterable[click.Parameter]) -> str:
    rows = []
    for option in parameters:
        if not isinstance(option, click.Option) or option.hidden or option.name in ("help", "version"):
            continue
        names = "`, `".join([*option.opts, *option.secondary_opts])
        takes = "" if option.is_flag else f" {_cell(option.make_metavar(click.Context(cli)))}"
        default = _shown(option.default) if option.show_default and not option.is_flag else ""
        rows.append([f"`{names}{takes}`", default, _cell(option.help or "")])
    return _table(["option", "default", ""], rows) if rows else ""


def _values(info: FieldInfo) -> str:
    """What it takes, in a word or two."""
    annotation, bounds = info.annotation, [*info.metadata]
    if get_origin(annotation) not in (Literal, tuple):  # X | None is X
        annotation = next(iter(get_args(annotation)), annotation)
    if get_origin(annotation) is Annotated:
        bounds += get_args(annotation)[1:]
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, get_args(annotation)))
    kinds: dict[Any, str] = {
        ByteSize: "size", bool: "on or off", int: "whole number", float: "number", Path: "path", SecretStr: "text",
        str: "text",
    }  # fmt: skip
    kind = kinds.get(annotation, "several")
    marks = {"ge": ("from {}", Ge), "gt": ("more than {}", Gt), "le": ("to {}", Le), "lt": ("less than {}", Lt)}
    said = [
        word.format(f"{getattr(bound, name):,}")
        for name, (word, wanted) in marks.items()
        for bound in bounds
        if isinstance(bound, wanted) and kind in ("whole number", "number")
    ]
    return " ".join([kind, *said])


def _default(info: FieldInfo) -> str:
    return "required" if info.is_required() else _shown(info.default)


def _shown(value: Any) -> str:
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, ByteSize):
        return f"`{value.human_readable().replace('.0', '')}`"
    if isinstance(value, (tuple, list)):
        return ", ".join(f"`{each}`" for each in value)
    return f"`{value}`" if not isinstance(value, float) else f"`{value:g}`"


def _prose(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").replace("\b", "").split("\n\n"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _table(names: list[str], rows: list[list[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
