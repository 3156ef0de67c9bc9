"""Pools with real engines in processes of their own, to be killed and frozen, and what tests of transports share."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import xxhash
from larder.memory import Memory, destination, fresh_bytes
from larder.places import Segment
from larder.pool_file import HEADER_BYTES

MIB = 2**20
CAPACITY_BYTES = 64 * MIB
PEER = Path(__file__).with_name("transport_peer.py")
START_S = 60.0


class Peer:
    """A pool and its engine, in a process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, str(PEER), str(path), str(CAPACITY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        ready = next((line for line in self.process.stdout if line.startswith("peer ready: ")), None)
        if ready is None:
            self.close()
            raise RuntimeError("the peer did not start")
        facts = json.loads(ready.removeprefix("peer ready: "))
        self.segment = Segment(
            id=1,
            node_id="peer",
            capacity_bytes=CAPACITY_BYTES,
            shm_path=str(path),
            shm_token=bytes.fromhex(facts["token"]),
            shm_data_offset=HEADER_BYTES,
            engine_endpoint=facts["endpoint"],
            engine_base=facts["base"],
            engine_protocol="tcp",
        )

    def peek(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), length, HEADER_BYTES + offset)

    def poke(self, offset: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), data, HEADER_BYTES + offset)

    def freeze(self) -> None:
        """Returns when every thread stands still."""
        self.process.send_signal(signal.SIGSTOP)
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            while (task / "stat").read_text().rpartition(") ")[2][0] != "T":
                time.sleep(0.001)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.kill()


def soon(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


def digest(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data)


def fresh(length: int) -> tuple[bytes | bytearray, Memory]:
    if length > 1:
        return fresh_bytes(length)
    data = bytearray(length)
    return data, destination(data)


async def until_true(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = soon(seconds)
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        await asyncio.sleep(0.01)
