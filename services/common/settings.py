"""How a service gets its settings: from a flag, else the environment, else the YAML file of --config, else the default.

pydantic-settings reads each source; load() merges them by name, so that an error can say where the value came from.
Nothing is ignored: an unknown flag, LARDER_<SERVICE>_ variable (except service links) or YAML key is refused. Each
problem is one line on stderr, and the exit status is 2. Values of secret fields are never shown.
"""

import difflib
import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, NoReturn, TypeVar

import dotenv
import yaml
from larder.addresses import ip_of, split
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from services.common import logs
from services.common.service_links import service_links
from services.common.version import VERSION

_SIZE: Final = re.compile(r"\s*\d+(\.\d+)?\s*([kmgtp]?i?b?)\s*", re.IGNORECASE)
_NO_DEFAULT: Final = re.compile(r" ?\(default: (None|\(\))?\)$")
_SEVERAL: Final = re.compile(r"(?<=\(default: )\((.+?),?\)(?=\)$)")
_HOST: Final = re.compile(r"[^\s:/\[\]]+")
_METAVARS: Final = {
    "ByteSize": "SIZE",
    "Path": "PATH",
    "int": "N",
    "float": "X",
    "str": "TEXT",
    "SecretStr": "TEXT",
    "tuple[str,...]": "TEXT",
}


def _check_size(value: object) -> object:
    if isinstance(value, str) and not _SIZE.fullmatch(value):
        raise ValueError("not a size: write bytes, or a number with a unit such as 512MiB, 2GB or 1TiB")
    return value


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _check_host(value: str) -> str:
    host = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    if value and ip_of(host) is None and (host != value or not _HOST.fullmatch(host)):
        raise ValueError("not a name or address of a host")
    return host


def _check_host_port(value: str) -> str:
    split(value)
    return value


Size = Annotated[ByteSize, BeforeValidator(_check_size), Field(gt=0)]
"""Bytes, written as 4096, 512MiB (powers of 1,024) or 2GB (powers of 1,000)."""


def at_least(floor: int, why: str) -> AfterValidator:
    """For a Size: refuses smaller ones, which usually lack a unit."""

    def check(value: ByteSize) -> ByteSize:
        if value < floor:
            raise ValueError(f"expected at least {floor} bytes, {why}; or is a unit missing, as in {int(value)}GB?")
        return value

    return AfterValidator(check)


Port = Annotated[int, Field(ge=0, le=65535)]
"""0 takes a free port."""
Host = Annotated[str, AfterValidator(_check_host)]
"""A name or an IP address, without a port; an IPv6 address with or without brackets."""
HostPort = Annotated[str, AfterValidator(_check_host_port)]
HostPorts = Annotated[tuple[HostPort, ...], NoDecode, BeforeValidator(_split)]
"""Several addresses: the flag repeated, followed by several values, or one value with commas."""
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class ServiceSettings(BaseSettings):
    """Settings of every service. A field `dram_size` is the flag --dram-size, LARDER_<SERVICE>_DRAM_SIZE and the
    YAML key dram-size. Constructed directly, it takes keyword arguments only and reads nothing else."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    other_env: ClassVar[Mapping[str, str]] = {}
    """Other variables, in the environment or in ./.env, that set a field: {"OPENAI_API_KEY": "openai_api_key"}."""

    config: Path | None = Field(None, description="YAML file with settings; its keys are the names of these flags")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level that is logged")
    log_format: logs.Format = Field("text", description="text, or json: one object per line")

    @classmethod
    def settings_customise_sources(  # type: ignore[override]  # load() reads the other sources
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        **_: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


T = TypeVar("T", bound=ServiceSettings)


def load(settings_type: type[T], *, prog: str, argv: Sequence[str] | None = None, called: str = "") -> T:
    """The settings of the service `prog` from argv (default: this process's), environment, file and defaults.

    `called`: the command that was typed, if that is not `prog`.
    If anything is wrong, prints what and exits with status 2; --help and --version print and exit with 0.
    """
    loader = _Loader(settings_type, prog, called or prog)
    values = loader.gather(sys.argv[1:] if argv is None else argv)
    if not loader.problems:
        try:
            return settings_type(**values)
        except ValidationError as error:
            loader.problems += loader.describe(error)
    print("\n".join(f"{prog}: {problem}" for problem in loader.problems), file=sys.stderr)
    raise SystemExit(2)


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def _add_argument(parser: Any, *names: str, **kwargs: Any) -> Any:
    if "metavar" in kwargs:
        kwargs["metavar"] = _METAVARS.get(kwargs["metavar"], kwargs["metavar"])
    if "help" in kwargs:  # which shows defaults as Python writes them
        text = _NO_DEFAULT.sub("", kwargs["help"])
        kwargs["help"] = _SEVERAL.sub(lambda found: found[1].replace("'", ""), text)
    if kwargs.get("action") == "append":  # a list: allow `--flag a b` beside `--flag a --flag b`
        kwargs |= {"action": "extend", "nargs": "+"}
    return parser.add_argument(*names, **kwargs)


class _Loader:
    """Reads one source after the other; remembers where each value came from, and every problem."""

    def __init__(self, settings_type: type[ServiceSettings], prog: str, called: str) -> None:
        self.type = settings_type
        self.called = called
        self.env_prefix = f"LARDER_{prog.upper().replace('-', '_')}_"
        self.problems: list[str] = []
        self.origins: dict[str, str] = {}
        self.file_name = ""

    def gather(self, argv: Sequence[str]) -> dict[str, Any]:
        flags, env = self._flags(argv), self._env()
        path = flags.get("config", env.get("config"))
        values: dict[str, Any] = {}
        for source in (self._file(path) if path else {}, env, flags):  # the last one wins
            values |= source
        self.origins |= {name: f"--{_kebab(name)}" for name in flags}
        return values

    def describe(self, error: ValidationError) -> list[str]:
        """One line per pydantic error, except that a list lacks the items it lost for being invalid."""
        problems = error.errors(include_url=False)
        with_bad_items = {problem["loc"][0] for problem in problems if len(problem["loc"]) > 1}
        return [
            self._describe(problem)
            for problem in problems
            if len(problem["loc"]) != 1 or problem["loc"][0] not in with_bad_items
        ]

    def _describe(self, problem: Mapping[str, Any]) -> str:
        name = str(problem["loc"][0]) if problem["loc"] else ""
        flag, variable = f"--{_kebab(name)}", f"{self.env_prefix}{name.upper()}"
        if problem["type"] == "missing":
            return f"{flag} is required (or {variable}, or {_kebab(name)} in the file given by --config)"
        reason: str = problem["msg"].removeprefix("Value error, ")
        if not name:
            return reason
        shown = "" if _is_secret(self.type.model_fields[name]) else f" {problem['input']}"
        return f"{self.origins.get(name, flag)}{shown}: {reason}"

    def _flags(self, argv: Sequence[str]) -> dict[str, Any]:
        parser = _Parser(prog=self.called, description=self.type.__doc__, allow_abbrev=False)
        parser.add_argument("--version", action="version", version=f"{self.called} {VERSION}")
        unknown: list[str] = []

        def parse_args(parser: ArgumentParser, args: Sequence[str]) -> Any:
            known, rest = parser.parse_known_args(args)
            unknown.extend(rest)
            return known

        try:
            source: CliSettingsSource[Any] = CliSettingsSource(
                self.type,
                cli_kebab_case=True,
                cli_implicit_flags=True,
                cli_hide_none_type=True,
                cli_avoid_json=True,
                root_parser=parser,
                cli_parse_args=list(argv),
                parse_args_method=parse_args,
                add_argument_method=_add_argument,
            )
            values = source()
        except SettingsError as error:
            self.problems.append(str(error))
            return {}
        flags = [text for text in unknown if text.startswith("-")]
        known = [f"--{_kebab(name)}" for name in self.type.model_fields]
        self.problems += [f"unknown flag {_unknown(text.split('=')[0], known)}" for text in flags]
        if unknown and not flags:
            self.problems.append(f"unexpected argument {unknown[0]!r}: every setting is a flag, see --help")
        return values

    def _env(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        links = service_links(os.environ)
        others = {**dotenv.dotenv_values(".env"), **os.environ} if self.type.other_env else {}
        for variable, name in self.type.other_env.items():
            if others.get(variable) and variable not in links:
                values[name] = others[variable]
                self.origins[name] = variable
        known = {f"{self.env_prefix}{name.upper()}": name for name in self.type.model_fields}
        for variable in os.environ:
            if variable.startswith(self.env_prefix) and variable not in known and variable not in links:
                self.problems.append(f"unknown environment variable {_unknown(variable, known)}")
        own = EnvSettingsSource(self.type, env_prefix=self.env_prefix)()
        for variable in links & known.keys():
            own.pop(known[variable], None)
        self.origins |= {name: variable for variable, name in known.items() if name in own}
        return values | own

    def _file(self, path: str | Path) -> dict[str, Any]:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            self.problems.append(f"cannot read the settings file {path}: {reason}")
            return {}
        except yaml.YAMLError as error:
            self.problems.append(f"{path} is not YAML: {' '.join(str(error).split())}")
            return {}
        if content is None:
            return {}
        if not isinstance(content, dict):
            self.problems.append(f"{path} must hold `key: value` lines, not a {type(content).__name__}")
            return {}
        known = {_kebab(name): name for name in self.type.model_fields if name != "config"}
        self.problems += [f"unknown key {_unknown(str(key), known)} in {path}" for key in content if key not in known]
        values = {known[key]: value for key, value in content.items() if key in known}
        for name in values:
            self.origins.setdefault(name, f"{_kebab(name)} in {path}")
        return values


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _is_secret(field: FieldInfo) -> bool:
    return "SecretStr" in str(field.annotation)


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"{name} (did you mean {near[0]}?)" if near else name
