"""Whoever writes into a pool file holds a lock on just those bytes, and lets go of it whatever happens."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from larder.copying import TooLate
from larder.memory import source
from larder.places import Fault, Segment
from larder.pool_file import HEADER_BYTES, PoolHeader
from larder.transports import Move, shm
from larder.transports.copiers import Copiers
from larder.writer_locks import has_writer, lock, unlock

TOKEN = b"t" * 16
CAPACITY_BYTES = 1 << 20
HOLD = """
import os, sys
from larder.writer_locks import lock
fd = os.open(sys.argv[1], os.O_RDWR)
lock(fd, 100, 50)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "pool"
    path.write_bytes(PoolHeader(CAPACITY_BYTES, TOKEN, 1).pack() + bytes(CAPACITY_BYTES))
    return path


@pytest.fixture
def node(path: Path) -> Iterator[int]:
    """The descriptor by which the node looks."""
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def segment(path: Path) -> Segment:
    return Segment(1, "node", CAPACITY_BYTES, str(path), TOKEN, HEADER_BYTES, "", 0, "")


def test_a_lock_is_seen_by_others_until_it_is_given_back(path: Path, node: int) -> None:
    writers = [os.open(path, os.O_RDWR) for _ in range(2)]
    for writer in writers:
        lock(writer, 100, 50)  # nobody waits for anybody
    assert has_writer(node, 149, 1)
    assert not has_writer(node, 150, 1000)
    assert not has_writer(node, 0, 100)
    unlock(writers[0], 100, 50)
    assert has_writer(node, 0, 1000)
    assert not has_writer(writers[1], 0, 1000)  # its own
    os.close(writers[1])  # as the end of its process does
    assert not has_writer(node, 0, 1000)
    os.close(writers[0])


def test_a_lock_goes_with_its_process(path: Path, node: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"locked\n"
        assert has_writer(node, 120, 1)
        writer.kill()
        writer.wait()
        assert not has_writer(node, 120, 1)


def write(segment: Segment, *places: tuple[int, int]) -> list[Fault | None]:
    """Moves of (offset, length)."""
    copiers = Copiers()
    moves = [Move(source(bytes(length)), offset) for offset, length in places]
    try:
        return asyncio.run(shm.SharedMemory(copiers).write(segment, moves, time.monotonic() + 10))
    finally:
        copiers.close()


@pytest.mark.parametrize("fails", [False, True])
def test_bytes_are_locked_while_they_are_written(
    segment: Segment, node: int, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[list[int]] = []

    def store_pieces(*_: Any, **__: Any) -> int:
        locked.append([at for at in range(0, 2048, 64) if has_writer(node, HEADER_BYTES + at, 64)])
        if fails:
            raise TooLate
        return 0

    monkeypatch.setattr(shm, "store_pieces", store_pieces)
    side_by_side, apart = [(256, 60), (512, 64)], (1024, 128)
    faults = write(segment, *side_by_side, apart)
    assert faults == [Fault.LATE if fails else None] * 3
    together = [256, 320, 384, 448, 512]
    assert locked == [together, together, [1024, 1088]]
    assert not has_writer(node, 0, 0)  # to the end of the file


def test_a_file_that_cannot_be_locked_is_not_written(
    segment: Segment, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(shm, "lock", refuse)
    before = path.read_bytes()
    assert write(segment, (0, 64), (10_000, 64)) == [Fault.UNREACHABLE] * 2
    monkeypatch.setattr(shm, "unlock", refuse)
    assert write(segment, (0, 64)) == [Fault.UNREACHABLE]
    assert path.read_bytes() == before


def test_nothing_to_write_is_no_mistake(segment: Segment) -> None:
    assert write(segment) == []
