"""The DRAM pool with real files on tmpfs."""

import asyncio
import ctypes
import logging
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from larder.pool_file import HEADER_BYTES, PoolHeader
from larder.writer_locks import lock

from services.storage_node import pool as pool_module
from services.storage_node import pool_dir
from services.storage_node.core.index import Place
from services.storage_node.memory_limit import Limit
from services.storage_node.pool import Pool, PoolError

CAPACITY = 1 << 20


def make(folder: Path, *, capacity: int = CAPACITY, wall_clock_ns: int = 1000) -> Pool:
    return Pool(folder, "n1", capacity, wall_clock_ns=wall_clock_ns)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def header_of(path: Path) -> PoolHeader:
    return PoolHeader.unpack(path.read_bytes()[:HEADER_BYTES])


async def test_the_file_has_the_header_and_shares_the_memory(shm: Path) -> None:
    pool = make(shm)
    assert await pool.prefault(asyncio.Event())
    assert pool.path == shm / "larder-n1.pool"
    assert header_of(pool.path) == pool.header == PoolHeader(CAPACITY, pool.header.token, 1000)
    assert pool.path.stat().st_size == HEADER_BYTES + CAPACITY
    assert pool.path.stat().st_mode & 0o777 == 0o600
    assert pool.data_address % mmap.PAGESIZE == 0
    ctypes.memmove(pool.data_address + CAPACITY - 4, b"tail", 4)
    with pool.path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        assert file.read() == b"tail"
        file.seek(HEADER_BYTES)
        file.write(b"head")
    assert ctypes.string_at(pool.data_address, 4) == b"head"
    pool.close()
    assert names(shm) == []


async def test_prefaulting_takes_the_memory_and_says_how_far_it_is(
    shm: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_STEP_BYTES", 1 << 16)
    caplog.set_level(logging.INFO)
    pool = make(shm)
    assert pool.path.stat().st_blocks * 512 <= HEADER_BYTES
    assert await pool.prefault(asyncio.Event())
    assert pool.path.stat().st_blocks * 512 == HEADER_BYTES + CAPACITY
    progress = [int(record.args[0]) for record in caplog.records if record.msg.startswith("pre-faulted")]  # type: ignore[index,arg-type]
    assert progress[-1] == 100
    assert progress == sorted(set(progress))
    assert len(progress) >= 9
    pool.close()


async def test_prefaulting_lets_others_run_and_can_be_stopped(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_STEP_BYTES", 1 << 16)
    pool = make(shm)
    stop = asyncio.Event()
    filling = asyncio.create_task(pool.prefault(stop))
    await asyncio.sleep(0)
    stop.set()
    assert await filling is False
    assert pool.path.stat().st_blocks * 512 < CAPACITY
    pool.close()


def test_a_second_node_with_the_same_id_is_refused_and_leaves_the_first_alone(shm: Path) -> None:
    first = make(shm)
    before = header_of(first.path)
    with pytest.raises(PoolError, match=r"larder-n1.pool belongs to a running storage node with the same id"):
        make(shm)
    assert header_of(first.path) == before
    assert names(shm) == ["larder-n1.pool"]
    first.close()
    make(shm).close()


def test_a_dead_nodes_file_is_replaced_with_a_greater_incarnation(shm: Path) -> None:
    program = f"""
import signal, sys
from pathlib import Path
from services.storage_node.pool import Pool
pool = Pool(Path({str(shm)!r}), "n1", {CAPACITY}, wall_clock_ns=5000)
print("up", flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGKILL)
    path = shm / "larder-n1.pool"
    stale, stale_inode = header_of(path), path.stat().st_ino
    assert stale.incarnation == 5000
    with path.open("rb") as old:  # as a client that still maps it
        pool = make(shm, wall_clock_ns=4000)  # the wall clock went back
        assert pool.header.incarnation == 5001
        assert pool.header.token != stale.token
        assert path.stat().st_ino != stale_inode
        assert PoolHeader.unpack(old.read(HEADER_BYTES)) == stale
    pool.close()
    later = make(shm, wall_clock_ns=9000)
    assert later.header.incarnation == 9000
    later.close()


def test_a_file_that_is_no_pool_is_left_alone(shm: Path) -> None:
    path = shm / "larder-n1.pool"
    path.write_bytes(b"something else")
    with pytest.raises(PoolError, match=r"larder-n1.pool is not a pool file and will not be overwritten: move it away"):
        make(shm)
    assert path.read_bytes() == b"something else"
    assert names(shm) == ["larder-n1.pool"]
    path.write_bytes(b"")  # what a node leaves that dies before its file is a pool
    pool = make(shm)
    assert header_of(pool.path).incarnation == 1000
    pool.close()


def test_a_pool_larger_than_the_file_system_says_how_much_is_free(shm: Path) -> None:
    with pytest.raises(PoolError, match=r"a pool of \d+ bytes does not fit /dev/shm/.*: \d+ bytes are free"):
        make(shm, capacity=1 << 50)
    assert names(shm) == []


@pytest.mark.parametrize("total", [CAPACITY, 1 << 40])
async def test_a_pool_larger_than_the_memory_is_refused(shm: Path, monkeypatch: pytest.MonkeyPatch, total: int) -> None:
    """At once where it never fits; where somebody may be about to let go, after a while."""
    monkeypatch.setattr(pool_dir, "memory_bytes", lambda: (1000, total))
    monkeypatch.setattr(pool_module, "_ROOM_UNSEEN_S", 0.3)
    if total == CAPACITY:
        with pytest.raises(PoolError, match="1000 bytes of memory are free"):
            make(shm)
    else:
        pool = make(shm)
        with pytest.raises(PoolError, match="1000 bytes of memory are free"):
            await pool.prefault(asyncio.Event())
        pool.close()
    assert names(shm) == []


async def test_a_pool_larger_than_its_container_names_the_limit_and_no_pools_of_others(
    shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shm / "larder-n2.pool").write_bytes(b"in another container")
    monkeypatch.setattr(pool_dir, "narrowest", lambda: Limit(CAPACITY, 1000))
    with pytest.raises(PoolError, match=r"container may use, 1000 are free; raise its limit \([^;]*\); see --dram"):
        make(shm)


@pytest.mark.parametrize("is_tmpfs", [True, False])
async def test_a_pool_on_a_disk_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, is_tmpfs: bool
) -> None:
    monkeypatch.setattr(pool_dir, "is_tmpfs", lambda fd: is_tmpfs)
    pool = make(tmp_path)
    assert await pool.prefault(asyncio.Event())
    pool.close()
    assert (f"{tmp_path} is no tmpfs" in caplog.text) is not is_tmpfs


@pytest.fixture
def one_mib(shm: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(shm)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a tmpfs here")
    yield shm
    subprocess.run(["umount", str(shm)], check=True)


async def test_a_file_system_that_fills_up_meanwhile_is_an_error_not_a_crash(
    one_mib: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_dir, "lacks_room", lambda fd, wanted: None)
    pool = make(one_mib, capacity=2 << 20)
    with pytest.raises(PoolError, match=r"cannot fill the pool .*: No space left on device"):
        await pool.prefault(asyncio.Event())
    pool.close()


def test_a_file_of_another_is_not_removed(shm: Path) -> None:
    pool = make(shm)
    pool.path.unlink()
    other = make(shm)
    pool.close()
    assert names(shm) == ["larder-n1.pool"]
    other.close()
    assert names(shm) == []


def test_writers_are_seen_where_they_are(shm: Path) -> None:
    pool = make(shm)
    fd = os.open(pool.path, os.O_RDWR)
    lock(fd, HEADER_BYTES + 4096, 100)
    zero = 0
    assert pool.has_writer(Place(zero, 4000, 1, 97))
    assert not pool.has_writer(Place(zero, 4000, 1, 96))
    assert not pool.has_writer(Place(zero, 4196, 1, CAPACITY - 4196))
    for nowhere in (Place(zero, 0, 1), Place(zero, 0, 1, CAPACITY + 1), Place(zero, 2**64 - 1, 1, 2**64 - 1)):
        assert not pool.has_writer(nowhere)
    os.close(fd)
    assert not pool.has_writer(Place(zero, 0, 1, CAPACITY))
    pool.close()


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"cannot open the pool file .*/nowhere/larder-n1.pool: No such file"):
        make(tmp_path / "nowhere")
