"""What happened, as files: one a process, a line when an operation begins and one when it ends.

A line is written by one system call, so that a process that is killed leaves what it had begun. Times are of
time.monotonic, which all processes of a host share. Nothing here judges.
"""

import itertools
import json
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK, MISS, ERROR = "ok", "miss", "error"


@dataclass(slots=True)
class Op:
    """One operation on one key. `end` is infinite where nobody saw it end: then anything may have become of it.

    put: `number` is what was put; ok with `copies` achieved, or `existed`. get: `number` is what was read. remove, seen
    (a match or exists): ok or miss. `error` names the exception, `said` is its text.
    """

    kind: str
    key: str
    begin: float
    end: float = math.inf
    client: str = ""
    outcome: str = ERROR
    number: int = 0
    wanted: int = 1
    copies: int = 0
    existed: bool = False
    error: str = ""
    said: str = ""


@dataclass(slots=True)
class Outage:
    """Something the nemesis did, from its begin to its heal. `fatal`: the node's memory is gone."""

    kind: str
    target: str
    begin: float
    end: float = math.inf
    fatal: bool = False


@dataclass(slots=True)
class Sample:
    """What the master said at a time."""

    at: float
    evicted_objects: int
    used_bytes: int = 0


@dataclass(slots=True)
class History:
    """All that the checker knows. `wholes`: when the cluster was seen whole again, every copy made."""

    ops: list[Op]
    outages: list[Outage] = field(default_factory=list)
    wholes: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)  # processes that ended, lines in logs


class Recorder:
    """Writes the operations of one process. Any thread may record."""

    def __init__(self, path: Path, client: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._client = client
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    @contextmanager
    def op(self, kind: str, key: str, **facts: Any) -> Iterator[Op]:
        """The block carries it out and fills in the outcome."""
        with self.ops(kind, [key], **facts) as (op,):
            yield op

    @contextmanager
    def ops(self, kind: str, keys: Sequence[str], numbers: Sequence[int] = (), **facts: Any) -> Iterator[list[Op]]:
        """Several that begin and end together. `numbers`: of the puts, to be known also if nobody sees the end."""
        with self._lock:
            number = next(self._numbers)
        begun = [Op(kind, key, time.monotonic(), client=self._client, **facts) for key in keys]
        for op, put in zip(begun, numbers, strict=False):
            op.number = put
        self._write([number, [_fields(op) for op in begun]])
        yield begun
        now = time.monotonic()
        for op in begun:
            op.end = now
        self._write([number, [_fields(op) for op in begun]])

    def _write(self, line: Any) -> None:
        data = json.dumps(line).encode() + b"\n"
        written = os.write(self._fd, data)
        assert written == len(data), "the history's disk is full"


def read(path: Path) -> list[Op]:
    """The operations of one file; a last line that was cut off by a kill is left out."""
    found: dict[int, list[Op]] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        number, ops = json.loads(line)
        found[number] = [Op(**fields) for fields in ops]
    return [op for ops in found.values() for op in ops]


def _fields(op: Op) -> dict[str, Any]:
    return {
        name: value for name in Op.__slots__ if (value := getattr(op, name)) not in (0, "", False) and value != math.inf
    }
