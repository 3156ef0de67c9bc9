"""The flight recorder: the core's last steps, kept in memory and written to a file should the core fail.

A step is deterministic (invariant 13), so a recording that begins with the core's first step replays to the same end.
One that begins later can only be read. Commands and effects are kept as they are and turned into JSON lines only when
they are written. What reaches a pool is not written, nor more of a key than tells it from others.
"""

import os
import tempfile
import traceback
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from larder.errors import LarderError

from services.common.version import VERSION
from services.master.core import messages as m
from services.master.core.master import Master
from services.master.core.tables import Config

KEPT_MAX: Final = 1 << 16
"""Steps and the entries of their columns: some 16 MB."""
BYTES_WHOLE_MAX: Final = 32
_SECRETS: Final = frozenset({"shm_token"})
_HIDDEN: Final = b"hidden: "
_COLUMNS: Final = {  # by which a value is weighed
    "keys": (m.PutStart, m.Lookup, m.Match, m.Exists, m.Remove, m.Report, m.Stat, m.Listed),
    "checksums": (m.PutEnd,),
    "write_ids": (m.PutAbort,),
    "leases": (m.Release,),
    "command_ids": (m.Ack,),
    "copies": (m.Inventory, m.Record),
    "extents": (m.Forget,),
    "places.copy_offsets": (m.PutStarted, m.Found, m.Known),
    "nodes": (m.StatusReport,),
}
_COLUMN_OF: Final = {kind: attrgetter(name) for name, kinds in _COLUMNS.items() for kind in kinds}


class RecordingError(LarderError):
    """A file that is no recording, or one of another version of Larder."""


class Origin(msgspec.Struct, frozen=True):
    """What a core is made of, and what became of it."""

    config: Config
    epoch: int
    began_at: int
    salt: int
    version: str = VERSION
    written: str = ""  # when, by the wall clock
    failure: str = ""  # its traceback


class Step(NamedTuple):
    number: int  # from 1
    now: int
    command: m.Command
    effects: Any  # as `plain` gives them; None: the core failed


class Recorder:
    """Of one core, from now on."""

    def __init__(self, core: Master) -> None:
        state = core.state
        self._origin = Origin(state.config, state.epoch, state.began_at, state.salt)
        self._steps: deque[tuple[int, int, m.Command, Sequence[m.Effect] | None]] = deque()
        self._count = 0
        self._weight = 0

    def keep(self, now: int, command: m.Command, effects: Sequence[m.Effect] | None) -> None:
        """`effects`: None where the core failed. A refused call changed nothing: it stands as a tick."""
        weight = _weight(command)
        for effect in effects or ():
            if type(effect) is not m.Reply:
                weight += _weight(effect)
            elif type(effect.answer) is m.Rejected:
                command, effects, weight = m.Tick(), [each for each in effects or () if each is not effect], 1
            else:
                weight += _weight(effect.answer)
        self._count += 1
        self._weight += weight
        self._steps.append((weight, now, command, effects))
        while self._weight > KEPT_MAX and len(self._steps) > 1:
            self._weight -= self._steps.popleft()[0]

    def write(self, error: BaseException) -> Path:
        """To a file of its own in the folder for temporary files, for its owner only; raises OSError."""
        handle, name = tempfile.mkstemp(prefix="larder-master-", suffix=".jsonl")
        failure = "".join(traceback.format_exception(error))
        origin = msgspec.structs.replace(self._origin, written=f"{datetime.now(UTC):%FT%TZ}", failure=failure)
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(origin) + b"\n")
            for number, (_, now, command, effects) in enumerate(self._steps, self._count - len(self._steps) + 1):
                said = None if effects is None else plain(effects)
                line = {"step": number, "now": now, "command": _named(command), "effects": said}
                file.write(msgspec.json.encode(line) + b"\n")
        return Path(name)


def read(path: Path) -> tuple[Origin, list[Step]]:
    """Raises RecordingError, and OSError."""
    try:
        with path.open("rb") as file:
            origin = msgspec.json.decode(file.readline(), type=Origin)
            return origin, [_step(msgspec.json.decode(line)) for line in file]
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"{path} is no recording that larder {VERSION} can read: {error}") from error


def plain(effects: Sequence[m.Effect]) -> Any:
    """As JSON has them. Equal for the same effects, whether they were recorded or not."""
    return msgspec.json.decode(msgspec.json.encode(list(map(_named, effects))))


def _step(line: dict[str, Any]) -> Step:
    ((name, fields),) = line["command"].items()
    kind = getattr(m, name)
    if kind not in m.Command.__args__:
        raise ValueError(f"{name} is no command")
    return Step(line["step"], line["now"], msgspec.convert(fields, kind), line["effects"])


def _named(value: m.Command | m.Effect) -> dict[str, Any]:
    fields = msgspec.to_builtins(value, builtin_types=(bytes,), enc_hook=list)
    if isinstance(value, m.Reply):
        fields, value = {"call": value.call, **fields["answer"]}, value.answer  # type: ignore[assignment]
    return {type(value).__name__: _shortened(fields)}


def _shortened(value: Any, name: str = "") -> Any:
    """What was shortened before stays as it is: a replay has nothing else."""
    if isinstance(value, bytes):
        if name in _SECRETS:
            return value if value.startswith(_HIDDEN) else _HIDDEN + _digest(value)
        return value if len(value) <= BYTES_WHOLE_MAX else value[: BYTES_WHOLE_MAX // 2] + _digest(value)
    if isinstance(value, dict):
        return {key: _shortened(each, key) for key, each in value.items()}
    return [_shortened(each) for each in value] if isinstance(value, list | tuple) else value


def _digest(value: bytes) -> bytes:
    return blake2b(value, digest_size=BYTES_WHOLE_MAX // 2).digest()


def _weight(value: Any) -> int:
    column = _COLUMN_OF.get(type(value))
    return 1 if column is None else 1 + len(column(value))
