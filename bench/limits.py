"""What this machine can do without Larder: the movers it is compared with. Each puts a batch of buffers somewhere and
gets it back, with nothing in between.

- Copy: one memmove per buffer into a mapped, pre-faulted file in shared memory, and out of it.
- Loopback: a blocking TCP socket to another process; a put ends when that process has all the bytes.
- BareEngine: two transfer engines in two processes, fed as the client feeds its own: one batch an entry, as many bytes
  and transfers in flight, polled with short sleeps.
"""

import ctypes
import mmap
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
from larder.transports.pump import BYTES_MAX, TRANSFERS_MAX

from bench.peer import REQUEST
from demo.cluster import HOST, START_DEADLINE_S
from demo.processes import Process

# The defaults of client and storage node, here for both ends of the bare engine.
ENGINE_ENV = {
    "MC_TCP_ENABLE_CONNECTION_POOL": "1",
    "MC_TCP_SLICE_SIZE": str(512 * 2**10),
    "MC_LOG_LEVEL": "ERROR",
}
TRANSFER_DEADLINE_S = 60.0
# Of those tried (none, yield, 50, 200 us; 16 to 1,024 in flight), 50 us was within a few percent of the fastest at
# every size; without a sleep, polling takes a core from the engine.
POLL_S = 50e-6


@dataclass(frozen=True)
class Buffers:
    """The caller's memory, as arrays and as (address, length): asking numpy for an address costs as much as copying
    a few kilobytes."""

    arrays: list[npt.NDArray[np.uint8]]
    pieces: list[tuple[int, int]]

    @classmethod
    def cut(cls, memory: npt.NDArray[np.uint8], size: int, count: int) -> Self:
        """The first `count` buffers of `size` bytes of `memory`."""
        starts = range(0, count * size, size)
        address = memory.ctypes.data
        return cls([memory[start : start + size] for start in starts], [(address + start, size) for start in starts])

    def one(self, index: int) -> "Buffers":
        return Buffers(self.arrays[index : index + 1], self.pieces[index : index + 1])

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def total_bytes(self) -> int:
        return sum(length for _, length in self.pieces)


def compare(sources: Buffers, destinations: Buffers) -> None:
    for source, destination in zip(sources.arrays, destinations.arrays, strict=True):
        if not np.array_equal(source, destination):
            raise RuntimeError("what came back is not what was put")


class Mover(Protocol):
    """`put` and `get` are timed. `begin` prepares a put of so many buffers, `end` lets go of what was put."""

    name: str

    def begin(self, count: int, size: int) -> None: ...

    def end(self) -> None: ...

    def put(self, sources: Buffers) -> None: ...

    def get(self, destinations: Buffers) -> None: ...

    def check(self, sources: Buffers, destinations: Buffers) -> None:
        """After a put and a get: raises if what came back is not what was put."""

    def close(self) -> None: ...


class Limit:
    """What movers without a store have in common: nothing to begin, nothing to end."""

    def begin(self, count: int, size: int) -> None:
        pass

    def end(self) -> None:
        pass

    def check(self, sources: Buffers, destinations: Buffers) -> None:
        compare(sources, destinations)

    def close(self) -> None:
        pass


class Copy(Limit):
    """One thread, one memmove per buffer."""

    name = "memory copy"

    def __init__(self, size: int, pool_dir: Path) -> None:
        path = pool_dir / "copy"
        path.touch()
        os.truncate(path, size)
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), size)
        path.unlink()
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        ctypes.memset(self._address, 1, size)

    def put(self, sources: Buffers) -> None:
        address = self._address
        for source, length in sources.pieces:
            ctypes.memmove(address, source, length)
            address += length

    def get(self, destinations: Buffers) -> None:
        address = self._address
        for destination, length in destinations.pieces:
            ctypes.memmove(destination, address, length)
            address += length


class FreshCopy(Copy):
    """Like Copy, but a get makes new bytes objects: the best that a get without a buffer can do."""

    name = "memory copy, new bytes"

    def get(self, destinations: Buffers) -> None:
        address = self._address
        found = []
        for _, length in destinations.pieces:
            found.append(ctypes.string_at(address, length))
            address += length

    def check(self, sources: Buffers, destinations: Buffers) -> None:
        pass  # a copy that was made for its time only


class Peer:
    """The process at the other end of Loopback and BareEngine."""

    def __init__(self, size: int, log_dir: Path) -> None:
        argv: list[str | Path] = [sys.executable, Path(__file__).with_name("peer.py"), str(size)]
        self.process = Process("peer", argv, log_dir=log_dir, env=os.environ | ENGINE_ENV)
        try:
            said = self.process.wait_line(r"peer ready: tcp (\d+) engine (\S+) base (\d+)", START_DEADLINE_S)
        except BaseException:
            self.close()
            raise
        self.port, self.endpoint, self.base = int(said[1]), said[2], int(said[3])

    def close(self) -> None:
        self.process.stop()


class Loopback(Limit):
    name = "loopback TCP"

    def __init__(self, peer: Peer) -> None:
        self._socket = socket.create_connection((HOST, peer.port), timeout=TRANSFER_DEADLINE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def put(self, sources: Buffers) -> None:
        self._socket.sendall(REQUEST.pack(b"W", sources.total_bytes))
        for source in sources.arrays:
            self._socket.sendall(source.data)
        assert self._socket.recv(1) == b"!"

    def get(self, destinations: Buffers) -> None:
        self._socket.sendall(REQUEST.pack(b"R", destinations.total_bytes))
        for destination in destinations.arrays:
            view = destination.data
            while view:
                received = self._socket.recv_into(view, 0, socket.MSG_WAITALL)
                assert received, "the peer hung up"
                view = view[received:]

    def check(self, sources: Buffers, destinations: Buffers) -> None:
        pass  # the peer keeps nothing

    def close(self) -> None:
        self._socket.close()


class BareEngine(Limit):
    name = "bare engine"

    def __init__(self, peer: Peer) -> None:
        os.environ.update(ENGINE_ENV)  # read when the engine is loaded
        from mooncake.engine import TransferEngine

        self._peer = peer
        self._engine: Any = TransferEngine()
        assert self._engine.initialize(HOST, "P2PHANDSHAKE", "tcp", "") == 0

    def put(self, sources: Buffers) -> None:
        self._move(self._engine.batch_transfer_async_write, sources)

    def get(self, destinations: Buffers) -> None:
        self._move(self._engine.batch_transfer_async_read, destinations)

    def _move(self, submit: Any, buffers: Buffers) -> None:
        until = time.monotonic() + TRANSFER_DEADLINE_S
        endpoint, remote = self._peer.endpoint, self._peer.base
        todo = buffers.pieces[::-1]
        in_flight: list[tuple[int, int]] = []
        in_flight_bytes = 0
        while todo or in_flight:
            while todo and len(in_flight) < TRANSFERS_MAX and in_flight_bytes + todo[-1][1] <= BYTES_MAX:
                local, length = todo.pop()
                batch = submit(endpoint, [local], [remote], [length])
                assert batch, "the bare engine does not take a transfer"
                in_flight.append((batch, length))
                in_flight_bytes += length
                remote += length
            still = []
            for batch, length in in_flight:
                status = self._engine.transfer_check_status(batch)
                assert status >= 0, "a transfer of the bare engine failed"
                if status == 1:
                    in_flight_bytes -= length
                else:
                    still.append((batch, length))
            if len(still) == len(in_flight):
                assert time.monotonic() < until, "a transfer of the bare engine does not end"
                time.sleep(POLL_S)
            in_flight = still

    def close(self) -> None:
        self._engine = None  # its destructor ends the threads
