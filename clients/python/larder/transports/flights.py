"""What the pump moves: peers, groups and flights. No engine is called here, and nothing waits.

A Group is one call's moves to one peer; a Flight is one move of it. What a flight does with the caller's bytes before
and after it is in the air stands at the end, to be run on a copy thread.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from larder.copying import checksum, load_pieces, store_pieces
from larder.memory import Memory
from larder.places import Fault
from larder.transports import Move
from larder.transports.mooncake import Engine
from larder.transports.staging import Buffer, Staging

PIECE_BYTES_MIN: Final = 32 * 1024
"""Scattered pieces smaller than this on average are gathered: a transfer costs as much as 64 KiB of copying."""
_STALL_S: Final = 1.0
_STALL_BYTES_PER_S: Final = 50e6
_NOTHING: Final = Move(Memory((), 0, None), 0)


class Peer:
    """A storage node's engine, as an engine of ours knows it."""

    def __init__(self, engine: Engine, staging: Staging, endpoint: str) -> None:
        self.engine = engine
        self.staging = staging
        self.endpoint = endpoint
        self.queue: deque[Flight] = deque()  # prepared, to be submitted
        self.transfers = 0
        self.bytes = 0
        self.owed = 0  # flights given up that are still in the air
        self.stalled = 0  # of these, the ones given up because nothing moved
        self.progress_at = 0.0


class Group:
    """One call's moves to one peer. `done` is called once, on the pump's thread, when nothing can land any more."""

    def __init__(
        self,
        peer: Peer,
        moves: Sequence[Move],
        *,
        base: int,
        writing: bool,
        until: float,
        direct: Callable[[Move], bool],
        done: Callable[[list[Fault | None]], None],
    ) -> None:
        self.peer = peer
        self.writing = writing
        self.until = until
        self.faults: list[Fault | None] = [None] * len(moves)
        self.left = len(moves)
        self.flights = [Flight(self, index, move, base, direct(move)) for index, move in enumerate(moves)]
        self.stall_s = _STALL_S + 4 * max(move.memory.length for move in moves) / _STALL_BYTES_PER_S
        self.begun_at = time.monotonic()
        self.cancelled = False
        self._done = done

    def fail(self, fault: Fault) -> None:
        """The same for every flight that is not settled yet."""
        for flight in self.flights:
            self.settle(flight, fault)

    def settle(self, flight: "Flight", fault: Fault | None) -> None:
        """What became of a flight, once."""
        if flight.settled:
            return
        flight.settled = True
        flight.move.arrived = fault is None
        self.faults[flight.index] = fault
        self.left -= 1
        if not flight.in_air or flight.staged is not None:
            flight.move = _NOTHING  # before the caller is told: from then on only he keeps his memory alive
        if not self.left:
            self.flights = []  # which know this group
            self._done(self.faults)


class Flight:
    """One move on its way."""

    __slots__ = (
        "base", "busy", "direct", "failed", "group", "in_air", "index", "length", "move", "owed", "settled", "staged",
        "stalled",
    )  # fmt: skip

    def __init__(self, group: Group, index: int, move: Move, base: int, direct: bool) -> None:
        self.group = group
        self.index = index
        self.move = move
        self.length = move.memory.length
        self.base = base
        pieces = move.memory.pieces
        self.direct = direct and (len(pieces) == 1 or self.length >= PIECE_BYTES_MIN * len(pieces))
        self.staged: Buffer | None = None
        self.in_air = 0
        self.busy = False  # a copy thread is at it
        self.failed = False
        self.settled = False
        self.owed = False
        self.stalled = False

    def transfers(self) -> list[tuple[int, int, int]]:
        """(local address, remote address, length) of each contiguous transfer."""
        remote = self.base + self.move.offset
        if self.staged is not None:
            return [(self.staged.address, remote, self.move.memory.length)]
        found = []
        for address, length in self.move.memory.pieces:
            found.append((address, remote, length))
            remote += length
        return found

    @property
    def binding(self) -> bool:
        """Whether the caller waits for all transfers in the air: they may land in the caller's memory."""
        return not self.group.writing and self.direct and not self.move.private


def hash_move(move: Move) -> None:
    """Sets the checksum of what is to be written."""
    move.checksum = checksum(move.memory.pieces)


def stage(move: Move, staged: Buffer) -> None:
    """Gathers what is to be written into staging memory, and hashes it on the way."""
    digest = store_pieces(move.memory.pieces, staged.address, hashing=move.hashing, until=float("inf"))
    if move.hashing:
        move.checksum = digest


def unload(flight: Flight) -> bool:
    """Scatters what landed in staging memory, and verifies; on a copy thread or here."""
    move = flight.move
    if flight.staged is not None:
        return load_pieces(move.memory.pieces, flight.staged.address, hashing=bool(move.checksum)) == move.checksum
    return checksum(move.memory.pieces) == move.checksum
