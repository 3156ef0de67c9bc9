"""Pools that are real memory, and the transports between them: an overlap shows as wrong bytes.

A transfer of the engine is carried out in the process of the node it goes to, so a paused node answers late and a dead
one never does. What was given up may land until `ENGINE_S` after it began (invariant 7), also in the caller's private
memory. Shared memory is the client's own copy loop over the pool's address.
"""

import asyncio
import ctypes
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from larder.copying import checksum, load_pieces
from larder.memory import view_at
from larder.mover import Mover
from larder.places import Fault, Segment
from larder.stats import Stats
from larder.transports import Move, Reach, in_range
from larder.transports.shm import _read, _write_one
from larder.v1.types_pb2 import Segment as Message

from services.master.core.messages import SegmentInfo
from tests.sim.loop import PROCESS, Process

ENGINE_S = 1.4  # the engine's own time-out: what was given up may land until then
STALL_S = 0.25  # a client gives up a transfer that is silent for so long
MAPPED_S = 0.4  # how long a mapping of a replaced pool is kept


@cache
def token_of(info: SegmentInfo) -> bytes:
    """By which the simulation knows a pool."""
    return Message.FromString(info.ways).shm_token


class Pool:
    """One life of a node's memory."""

    def __init__(self, process: Process, node_id: str, token: bytes, capacity: int) -> None:
        self.process = process
        self.node_id = node_id
        self.token = token
        self.capacity_bytes = capacity
        self.data = bytearray(capacity)
        self.data_address = ctypes.addressof(ctypes.c_char.from_buffer(self.data))
        self.address = self.data_address  # as a Mapping of shared memory names it
        self.gone_at: float | None = None  # when its node was killed
        self.tainted: list[tuple[int, int]] = []  # bytes changed by faults: (start, end)
        self.grants: list[tuple[float, int, int, int]] = []  # (until, start, end, lease)
        self.used: set[int] = set()  # offsets that were written before
        self.locks: dict[object, tuple[Process, int, int]] = {}  # writers by shared memory: (process, start, end)

    def is_tainted(self, start: int, end: int) -> bool:
        return any(first < end and start < last for first, last in self.tainted)

    def has_writer(self, place: Any) -> bool:
        """Stands for the node's own pool, whose locks are the kernel's and go with their process."""
        return any(
            process.alive and start < place.offset + place.length and place.offset < end
            for process, start, end in self.locks.values()
        )

    def is_granted(self, start: int, end: int, now: float) -> bool:
        return any(until > now and first < end and start < last for until, first, last, _ in self.grants)


class InlineCopiers:
    """The copy threads' work, done at once."""

    async def run(self, works: Any) -> list[Any]:
        return [work() for work in works]

    def close(self) -> None:
        """There is nothing to end."""


class SimMover(Mover):
    """The client's own mover over simulated transports."""

    def __init__(self, world: Any, stats: Stats, *args: Any) -> None:
        super().__init__((), stats, *args)
        self.copiers.close()
        self.copiers = InlineCopiers()  # type: ignore[assignment]
        process = PROCESS.get()
        self._transports = [SimShm(world, process), SimEngine(world, process)]


class SimShm:
    """Pools on the process's own host."""

    name = "shm"

    def __init__(self, world: Any, process: Process) -> None:
        self._world = world
        self._process = process
        self._mapped: set[bytes] = set()

    def reach(self, segment: Segment) -> Reach:
        return Reach.NONE if self._pool(segment) is None else Reach.GOOD

    def _pool(self, segment: Segment) -> Pool | None:
        pool: Pool | None = self._world.pools.get(segment.shm_token)
        if pool is None or pool.process.host != self._process.host:
            return None
        replaced = self._world.nodes[pool.node_id].pool is not pool
        if replaced and (segment.shm_token not in self._mapped or self._world.now > pool.gone_at + MAPPED_S):
            return None
        self._mapped.add(segment.shm_token)
        return pool

    async def read(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        pool = self._pool(segment)
        if pool is None or not in_range(segment, moves):
            return [Fault.UNREACHABLE] * len(moves)
        faults = _read(pool, moves, until)  # type: ignore[arg-type]
        for move, fault in zip(moves, faults, strict=True):
            if fault is not Fault.LATE:
                self._world.oracle.accesses.was_read(pool, move, fault)
        return faults

    async def write(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        pool = self._pool(segment)
        if pool is None or not in_range(segment, moves):
            return [Fault.UNREACHABLE] * len(moves)
        if self._world.faults.freezes_writer(self._process):
            return await self._write_frozen(pool, moves, until)
        faults = [_write_one(pool, move, until) for move in moves]  # type: ignore[arg-type]  # locks are the kernel's
        for move, fault in zip(moves, faults, strict=True):
            if fault is None:
                self._world.oracle.accesses.was_written(pool, move.offset, move.memory.length, self._world.now)
        return faults

    async def _write_frozen(self, pool: Pool, moves: Sequence[Move], until: float) -> list[Fault | None]:
        """The client is stopped after it looked at the clock and before it copies, which it does when woken."""
        process, loop = self._process, asyncio.get_running_loop()
        if loop.time() + process.clock_offset_s >= until:
            return [Fault.LATE] * len(moves)
        begun = self._world.now
        for move in moves:
            pool.locks[move] = process, move.offset, move.offset + move.memory.length
        woken: asyncio.Future[None] = loop.create_future()
        self._world.faults.pause(process)
        loop.call_soon(woken.set_result, None)
        await woken
        for move in moves:
            if move.hashing:
                move.checksum = checksum(move.memory.pieces)
            self._world.land(pool, move.offset, bytes_of(move), begun)
            del pool.locks[move]
        return [None] * len(moves)

    def can_abandon(self, move: Move) -> bool:
        return False

    async def close(self) -> None:
        """Mappings end with the process."""


class SimEngine:
    """Pools on any host."""

    name = "engine"

    def __init__(self, world: Any, process: Process) -> None:
        self._world = world
        self._process = process
        self._doubted: dict[bytes, float] = {}  # token -> until when

    def reach(self, segment: Segment) -> Reach:
        if segment.shm_token not in self._world.pools:
            return Reach.NONE
        return Reach.DOUBTFUL if self._doubted.get(segment.shm_token, 0.0) > self._world.now else Reach.GOOD

    async def read(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        return await self._run(segment, moves, until, self._read)

    async def write(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        return await self._run(segment, moves, until, self._write)

    def can_abandon(self, move: Move) -> bool:
        return True

    async def close(self) -> None:
        """Transfers under way land by themselves."""

    async def _run(
        self, segment: Segment, moves: Sequence[Move], until: float, begin: Callable[..., Any]
    ) -> list[Fault | None]:
        world, loop = self._world, asyncio.get_running_loop()
        pool: Pool | None = world.pools.get(segment.shm_token)
        if pool is None or not in_range(segment, moves):
            return [Fault.UNREACHABLE] * len(moves)
        await asyncio.sleep(world.net.delay())  # before it gets its turn
        late_at = until - self._process.clock_offset_s
        if loop.time() >= late_at:
            return [Fault.LATE] * len(moves)
        if not pool.process.alive:
            return [Fault.UNREACHABLE] * len(moves)
        answered: asyncio.Future[list[Fault | None]] = loop.create_future()
        arrives = world.net.transfer_arrives(self._process, pool.process)
        if arrives is not None:
            work = begin(pool, moves, loop.time(), late_at, answered)
            loop.call_at(arrives, work, context=pool.process.context)
        stalls_at = loop.time() + STALL_S
        fault = Fault.LATE if late_at <= stalls_at else Fault.STALLED
        timer = loop.call_at(min(late_at, stalls_at), _settle, answered, [fault] * len(moves))
        try:
            faults = await answered
        finally:
            timer.cancel()
        if Fault.STALLED in faults:
            self._doubted[segment.shm_token] = world.now + STALL_S
        return faults

    def _write(
        self, pool: Pool, moves: Sequence[Move], begun: float, late_at: float, answered: Any
    ) -> Callable[[], None]:
        payload = [bytes_of(move) for move in moves]
        for move in moves:
            if move.hashing:
                move.checksum = checksum(move.memory.pieces)
            self._world.oracle.accesses.begins_write(pool, move.offset, begun)
        errors = [self._world.net.transfer_fails() for _ in moves]

        def land() -> None:
            for move, data, failed in zip(moves, payload, errors, strict=True):
                self._world.land(pool, move.offset, data[: len(data) // 2] if failed else data, begun)
            faults = [Fault.UNREACHABLE if failed else None for failed in errors]
            self._answer(answered, faults)

        return land

    def _read(
        self, pool: Pool, moves: Sequence[Move], begun: float, late_at: float, answered: Any
    ) -> Callable[[], None]:
        def sample() -> None:
            taken = [bytes(pool.data[move.offset : move.offset + move.memory.length]) for move in moves]
            loop = asyncio.get_running_loop()
            back = loop.time() + self._world.net.delay()
            loop.call_at(back, deliver, taken, context=self._process.context)

        def deliver(taken: list[bytes]) -> None:
            faults: list[Fault | None] = []
            for move, data in zip(moves, taken, strict=True):
                if answered.done():
                    if move.private:  # given up: what the engine still delivers must not be trusted
                        scatter(move, bytes(len(data)))
                    continue
                if self._world.now >= late_at:
                    faults.append(Fault.LATE)
                    continue
                if self._world.net.transfer_fails():
                    faults.append(Fault.UNREACHABLE)
                    continue
                scatter(move, data)
                good = not move.checksum or checksum(move.memory.pieces) == move.checksum
                faults.append(None if good else Fault.CORRUPT)
                self._world.oracle.accesses.was_read(pool, move, faults[-1])
            _settle(answered, faults)

        return sample

    def _answer(self, answered: Any, faults: list[Fault | None]) -> None:
        """On the way from the node back to the waiting process."""
        loop = asyncio.get_running_loop()
        loop.call_later(self._world.net.delay(), partial(_settle, answered, faults), context=self._process.context)


def bytes_of(move: Move) -> bytes:
    return b"".join(bytes(view_at(address, length)) for address, length in move.memory.pieces)


def scatter(move: Move, data: bytes) -> None:
    held = ctypes.create_string_buffer(data, len(data))
    load_pieces(move.memory.pieces, ctypes.addressof(held), hashing=False)


def _settle(answered: Any, faults: list[Fault | None]) -> None:
    if not answered.done():
        answered.set_result(faults)
