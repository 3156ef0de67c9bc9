"""What connect() can be told, by arguments or by a file; arguments win. No connection is made here."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from larder.addresses import split
from larder.engine_ports import Ports
from larder.engine_ports import parse as parse_ports
from larder.errors import InvalidArgument
from larder.mover import TRANSPORTS

MASTER_VARIABLE: Final = "LARDER_MASTER"
PORTS_VARIABLE: Final = "LARDER_ENGINE_PORTS"
CONFIG_FILE_VARIABLE: Final = "LARDER_CONFIG_FILE"
MOONCAKE_VARIABLE: Final = "MOONCAKE_CONFIG_PATH"
TIMEOUT_S: Final = 5.0
ZONE_LENGTH_MAX: Final = 64
HELP: Final = {  # what can be told, for people: docs/configuration.md shows it
    "master": "address of the master, or several with commas between them",
    "timeout_s": "seconds that every call may take",
    "verify": "checksums are made when bytes are put, and checked when they are got",
    "transports": "ways that bytes may go: shm, this host's memory, and engine, the network",
    "zone": "label of what fails together, such as a rack: storage nodes with that --zone are the nearest after those "
    "of this host",
    "engine_ports": "MIN-MAX: ports that this process's transfer engine takes; not given: its own choice",
}
_MOONCAKE_IGNORED: Final = (  # what that file says of storage nodes and of the engine's own ways
    "device_name", "global_segment_size", "local_buffer_size", "local_hostname", "metadata_server", "mode", "protocol",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """Checked options of a store."""

    masters: tuple[str, ...]
    timeout_s: float
    verify: bool
    transports: tuple[str, ...]
    zone: str
    engine_ports: Ports | None


def resolve(
    master: str | None,
    *,
    timeout_s: float | None = None,
    verify: bool | None = None,
    transports: Sequence[str] | None = None,
    zone: str | None = None,
    engine_ports: str | None = None,
) -> Options:
    """Arguments where given, else the environment's and the file's word, else the default; raises InvalidArgument."""
    master = master if master is not None else os.environ.get(MASTER_VARIABLE) or None
    engine_ports = engine_ports if engine_ports is not None else os.environ.get(PORTS_VARIABLE) or None
    given = {
        "master": master,
        "timeout_s": timeout_s,
        "verify": verify,
        "transports": transports,
        "zone": zone,
        "engine_ports": engine_ports,
    }
    chosen = from_file(os.environ) if master is None or CONFIG_FILE_VARIABLE in os.environ else {}
    chosen |= {name: value for name, value in given.items() if value is not None}
    if not chosen.get("master"):
        raise InvalidArgument(
            f"no master given: call connect('HOST:PORT'), or set {MASTER_VARIABLE}, {CONFIG_FILE_VARIABLE} or "
            f"{MOONCAKE_VARIABLE}"
        )
    return Options(
        masters=_masters(chosen["master"]),
        timeout_s=_timeout(chosen.get("timeout_s", TIMEOUT_S)),
        verify=_verify(chosen.get("verify", True)),
        transports=_transports(chosen.get("transports", TRANSPORTS)),
        zone=_zone(chosen.get("zone", "")),
        engine_ports=_engine_ports(chosen.get("engine_ports", "")),
    )


def from_file(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the file says that these variables name, by the names of the options; raises InvalidArgument."""
    if path := environ.get(CONFIG_FILE_VARIABLE):
        values = _read(Path(path), CONFIG_FILE_VARIABLE)
        if unknown := sorted(set(values) - HELP.keys()):
            raise InvalidArgument(f"{path}: unknown keys {', '.join(unknown)}; known are {', '.join(HELP)}")
        return values
    if path := environ.get(MOONCAKE_VARIABLE):
        values = _read(Path(path), MOONCAKE_VARIABLE)
        if unknown := sorted(set(values) - {"master_server_address", *_MOONCAKE_IGNORED}):
            raise InvalidArgument(f"{path}: unknown keys {', '.join(unknown)}; wanted is master_server_address")
        if "master_server_address" not in values:
            raise InvalidArgument(f"{path}: the key master_server_address is missing")
        return {"master": values["master_server_address"]}
    return {}


def _read(path: Path, variable: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{variable} names {path}, which cannot be read: {error}") from error
    try:
        values = _yaml(text) if path.suffix in (".yaml", ".yml") else json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"{path}: {error}") from error
    if not isinstance(values, Mapping):
        raise InvalidArgument(f"{path}: expected a mapping of names to values, got {type(values).__name__}")
    return dict(values)


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ValueError("YAML needs the package pyyaml; install it, or write the file as JSON") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from error


def _masters(value: Any) -> tuple[str, ...]:
    if not isinstance(value, str) or not value.isascii():
        raise InvalidArgument(f"master is {value!a}: expected HOST:PORT, or several separated by commas")
    masters = tuple(address.strip() for address in value.split(","))
    for address in masters:
        try:
            split(address)
        except ValueError as error:
            raise InvalidArgument(f"master is {address!r}: expected HOST:PORT or [IPv6]:PORT") from error
    return masters


def _timeout(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
        raise InvalidArgument(f"timeout_s is {value!r}: expected seconds, more than 0 and at most 3600")
    return float(value)


def _verify(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"verify is {value!r}: expected true or false")
    return value


def _transports(value: Any) -> tuple[str, ...]:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not value or any(each not in TRANSPORTS for each in value):
        raise InvalidArgument(f"transports is {value!a}: expected one or more of {', '.join(TRANSPORTS)}")
    return tuple(value)


def _zone(value: Any) -> str:
    if not isinstance(value, str) or len(value) > ZONE_LENGTH_MAX or not (value.isascii() and value.isprintable()):
        raise InvalidArgument(f"zone is {value!a}: expected a label of at most {ZONE_LENGTH_MAX} ASCII characters")
    return value


def _engine_ports(value: Any) -> Ports | None:
    if value == "":
        return None
    try:
        return parse_ports(value if isinstance(value, str) else "")
    except ValueError as error:
        raise InvalidArgument(f"engine_ports is {value!a}: {error}") from error
