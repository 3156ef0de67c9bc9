"""A scripted master and scripted transports, and a getter and a putter over them."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from larder.arguments import Terms
from larder.background import Background
from larder.errors import LarderError
from larder.gets import Getter
from larder.memory import fresh_bytes, source, view_at
from larder.mover import Mover
from larder.places import Copy, Fault, Segment, Slice
from larder.puts import Putter
from larder.reads import Landing
from larder.rpc import BadCopy, Ended, Found, Started
from larder.stats import Stats
from larder.transports import Move, Reach
from larder.v1.types_pb2 import Result
from larder.writes import PutResult

DATA = b"0123456789"


def segment(name: str) -> Segment:
    return Segment(ord(name), name, 1000, "", name.encode() * 16, 0, "", 0, "tcp")


A, B, C = segment("a"), segment("b"), segment("c")


class Master:
    """Answers as scripted and keeps what it was told."""

    def __init__(self, slices: list[Slice], *, lease_s: float = 10.0) -> None:
        self.slices = slices
        self.lease_s = lease_s
        self.lookups = 0
        self.reported: list[BadCopy] = []
        self.ended: list[tuple[Any, ...]] = []
        self.aborted: list[int] = []

    async def lookup(self, keys: Sequence[bytes], *, deadline: float) -> Found:
        self.lookups += 1
        until = time.monotonic() + self.lease_s
        return Found([sum(part.length for part in self.slices)] * len(keys), [self.slices] * len(keys), until)

    async def report(self, bad: Sequence[BadCopy], *, deadline: float) -> int:
        self.reported += bad
        return len(bad)

    async def put_start(self, keys: Sequence[bytes], sizes: Sequence[int], terms: Terms, **_: Any) -> Started:
        ids = list(range(1, len(keys) + 1))
        return Started([Result.RESULT_OK] * len(keys), ids, [self.slices] * len(keys), time.monotonic() + self.lease_s)

    async def put_end(self, write_ids: Any, checksums: Any, failed: Any, *, deadline: float) -> Ended:
        self.ended.append((list(write_ids), checksums, failed))
        return Ended([Result.RESULT_OK] * len(write_ids), [1] * len(write_ids))

    async def put_abort(self, write_ids: Sequence[int], *, deadline: float) -> None:
        self.aborted += write_ids


Behaviour = Callable[[Segment, Move], Fault | None]


class ScriptedTransport:
    """Does to each move what the test says."""

    def __init__(self, name: str, reaches: dict[str, Reach], behave: Behaviour) -> None:
        self.name = name
        self.reaches = reaches
        self.behave = behave
        self.asked: list[str] = []

    def reach(self, segment: Segment) -> Reach:
        return self.reaches.get(segment.node_id, Reach.NONE)

    async def read(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        await asyncio.sleep(0)
        self.asked += [segment.node_id] * len(moves)
        return [self.behave(segment, move) for move in moves]

    write = read

    def can_abandon(self, move: Move) -> bool:
        return True

    async def close(self) -> None:
        pass


class World:
    def __init__(self, master: Master, *transports: ScriptedTransport, verify: bool = True) -> None:
        self.stats = Stats()
        self.mover = Mover([], self.stats)
        self.mover._transports = list(transports)
        self.background = Background(master, self.stats)  # type: ignore[arg-type]
        self.getter = Getter(master, self.mover, self.background, verify=verify)  # type: ignore[arg-type]
        self.putter = Putter(master, self.mover, self.background, verify=verify)  # type: ignore[arg-type]

    async def get(self, *, private: bool = True, seconds: float = 5.0) -> Any:
        self.landings: list[Landing] = []

        def prepare(index: int, size: int) -> Landing:
            data, memory = fresh_bytes(size)
            self.landings.append(Landing(memory, data, private=private))
            return self.landings[-1]

        (answer,) = await self.getter.get([b"key"], prepare, time.monotonic() + seconds)
        await self.background.close()
        return answer

    async def put(self, data: bytes = DATA) -> PutResult | LarderError:
        deadline = time.monotonic() + 5
        (answer,) = await self.putter.put(
            [b"key"], [source(data)], terms=Terms(copies=2), depths=(), started=None, deadline=deadline
        )
        await self.background.close()
        return answer


def fill(segment: Segment, move: Move) -> None:
    start = 0
    for address, length in move.memory.pieces:
        view_at(address, length, writable=True)[:] = DATA[start : start + length]
        start += length


def only_from(*good: str, fault: Fault = Fault.UNREACHABLE) -> Behaviour:
    def behave(segment: Segment, move: Move) -> Fault | None:
        return fill(segment, move) if segment.node_id in good else fault

    return behave


def copies(*segments: Segment) -> list[Copy]:
    return [Copy(each, 100) for each in segments]


def everywhere(*names: str) -> dict[str, Reach]:
    return dict.fromkeys(names, Reach.GOOD)
