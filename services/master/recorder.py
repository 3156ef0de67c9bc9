"""The flight recorder: the core's last steps, kept in memory and written to a file should the core fail.

A step is deterministic (invariant 13), so a recording that begins with the core's first step replays to the same end.
One that begins later can only be read. Of a step only the command is kept, and the kinds of its effects: they follow
from it. All is packed into a few long buffers: kept as objects, it would slow down every step by keeping memory from
being used again while the processor has it at hand. What opens a pool is not written, nor more of a key than tells it
from others.
"""

import os
import tempfile
import traceback
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from larder.errors import LarderError

from services.common.version import VERSION
from services.master.core import messages as m
from services.master.core.master import Master
from services.master.core.packed import PackedKeys
from services.master.core.tables import Config

BLOCK_BYTES: Final = 1 << 20
BLOCKS_MAX: Final = 8
PACKED_AT_ONCE: Final = 16
"""Steps: together each costs less than alone, when the processor has other code at hand."""
BYTES_WHOLE_MAX: Final = 32
REJECTED: Final = m.Rejected.__name__
_SECRETS: Final = frozenset({"ways"})


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
    effects: list[str] | None  # as `kinds` names them; None: the core failed


class _Block:
    def __init__(self, first: int) -> None:
        self.first = first  # its first step's number
        self.packed = bytearray()
        self.ends = array("Q")  # of its steps, there

    def steps(self) -> Iterator[tuple[int, Any]]:
        for number, (begin, end) in enumerate(pairwise([0, *self.ends]), self.first):
            yield number, msgspec.msgpack.decode(memoryview(self.packed)[begin:end])


class Recorder:
    """Of one core, from now on."""

    def __init__(self, core: Master) -> None:
        state = core.state
        self._origin = Origin(state.config, state.epoch, state.began_at, state.salt)
        self._pack_into = msgspec.msgpack.Encoder(enc_hook=_whole).encode_into
        self._unpacked: list[tuple[int, m.Command, list[str] | None]] = []
        self._blocks = deque([_Block(1)], BLOCKS_MAX)

    def keep(self, now: int, command: m.Command, effects: Sequence[m.Effect] | None) -> None:
        """`effects`: None where the core failed. A refused call changed nothing: it stands as a tick."""
        told = None if effects is None else kinds(effects)
        if told and REJECTED in told:
            command, told = m.Tick(), [kind for kind in told if kind != REJECTED]
        self._unpacked.append((now, command, told))
        if len(self._unpacked) >= PACKED_AT_ONCE:
            self._pack()

    def _pack(self) -> None:
        block = self._blocks[-1]
        for now, command, told in self._unpacked:
            self._pack_into((now, type(command).__name__, command, told), block.packed, -1)
            block.ends.append(len(block.packed))
            if len(block.packed) >= BLOCK_BYTES:
                block = _Block(block.first + len(block.ends))
                self._blocks.append(block)
        self._unpacked.clear()

    def write(self, error: BaseException) -> Path:
        """To a file of its own in the folder for temporary files, for its owner only; raises OSError."""
        self._pack()
        handle, name = tempfile.mkstemp(prefix="larder-master-", suffix=".jsonl")
        failure = "".join(traceback.format_exception(error))
        origin = msgspec.structs.replace(self._origin, written=f"{datetime.now(UTC):%FT%TZ}", failure=failure)
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(origin) + b"\n")
            for number, (now, kind, command, told) in chain.from_iterable(block.steps() for block in self._blocks):
                line = {"step": number, "now": now, "command": {kind: _shortened(command)}, "effects": told}
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


def kinds(effects: Sequence[m.Effect]) -> list[str]:
    """What was done, in brief: of a reply, which answer it was."""
    return [type(each.answer if type(each) is m.Reply else each).__name__ for each in effects]


def _step(line: dict[str, Any]) -> Step:
    ((name, fields),) = line["command"].items()
    kind = getattr(m, name)
    if kind not in m.Command.__args__:
        raise ValueError(f"{name} is no command")
    return Step(line["step"], line["now"], msgspec.convert(fields, kind), line["effects"])


def _whole(keys: PackedKeys) -> dict[str, Any]:
    """Keys that came end to end stay so."""
    return {"width": keys.width, "keys": keys.joined(0, len(keys))}


def _shortened(value: Any, name: str = "") -> Any:
    if isinstance(value, bytes):
        if name not in _SECRETS and len(value) <= BYTES_WHOLE_MAX:
            return value
        digest = blake2b(value, digest_size=BYTES_WHOLE_MAX // 2).digest()
        return digest if name in _SECRETS else value[: BYTES_WHOLE_MAX // 2] + digest
    if isinstance(value, dict):
        if value.keys() == {"width", "keys"}:  # as `_whole` has it
            return [_shortened(key) for key in PackedKeys(value["keys"], value["width"])]
        return {key: _shortened(each, key) for key, each in value.items()}
    return [_shortened(each) for each in value] if isinstance(value, list) else value
