"""Pool files of others: reclaimed where their owner is dead, and nothing else is touched; who holds room is named."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from larder.pool_file import MAGIC

from services.storage_node import pool as pool_module
from services.storage_node import pool_dir
from services.storage_node.identity import own_pool
from services.storage_node.pool import Pool, PoolError

CAPACITY = 1 << 20
OWNER = """
import signal, sys
from pathlib import Path
from services.storage_node.pool import Pool
pools = [Pool(Path(sys.argv[1]), name, int(sys.argv[2]), wall_clock_ns=1) for name in sys.argv[3:]]
print("up", flush=True)
signal.pause()
"""
CONTAINER = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--map-root-user"]
CLIENT = """
import mmap, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(fd, 0)
os.close(fd)
print("up", flush=True)
signal.pause()
"""


@contextmanager
def running(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield process
        finally:
            process.kill()


def own(folder: Path, node_id: str = "n1", capacity: int = CAPACITY) -> Pool:
    return own_pool(folder, node_id, capacity, wall_clock_ns=1000)[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_of_dead_nodes_of_any_id_are_reclaimed_and_each_is_logged(
    shm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with running(sys.executable, "-c", OWNER, str(shm), str(CAPACITY), "n7", "n8.x", "n1") as owner:
        pool = own(shm, "n2")
        assert names(shm) == ["larder-n1.pool", "larder-n2.pool", "larder-n7.pool", "larder-n8.x.pool"]
        assert sum("belongs to a running storage node" in line for line in caplog.messages) == 3
        pool.close()
        owner.send_signal(signal.SIGSTOP)  # alive, however silent
        own(shm, "n2").close()
        assert len(names(shm)) == 3
    caplog.clear()
    pool = own(shm)
    assert names(shm) == ["larder-n1.pool"]
    dead = "of a dead storage node"
    for name in ("n7", "n8.x"):
        assert sum(f"reclaimed the pool file {shm}/larder-{name}.pool {dead}" in each for each in caplog.messages) == 1
    assert caplog.messages.count(f"replacing the pool file {shm}/larder-n1.pool {dead} with this id") == 1
    pool.close()


@pytest.mark.skipif(
    subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode != 0, reason="no namespaces here"
)
def test_the_file_of_a_node_in_another_container_that_lives_is_left_alone(shm: Path) -> None:
    with running(*CONTAINER, sys.executable, "-c", OWNER, str(shm), str(CAPACITY), "inner"):
        own(shm).close()
        assert names(shm) == ["larder-inner.pool"]
    deadline = time.monotonic() + 10
    while (shm / "larder-inner.pool").exists():  # its end takes a moment to reach the container
        own(shm).close()
        assert time.monotonic() < deadline
    assert names(shm) == []


def test_what_is_no_pool_file_is_left_alone(shm: Path, caplog: pytest.LogCaptureFixture) -> None:
    (shm / "larder-cache.pool").write_bytes(b"mine")
    (shm / "larder-empty.pool").touch()
    (shm / "larder-folder.pool").mkdir()
    (shm / "larder-link.pool").symlink_to(shm / "other")
    (shm / "other").write_bytes(MAGIC + bytes(100))
    os.mkfifo(shm / "larder-fifo.pool")
    before = names(shm)
    pool = own(shm)
    assert names(shm) == sorted([*before, "larder-n1.pool"])
    assert sum("larder-cache.pool alone: it is not a pool file" in each for each in caplog.messages) == 1
    pool.close()
    assert names(shm) == before


def test_nodes_that_start_at_once_take_nothing_from_each_other(shm: Path) -> None:
    pools: list[tuple[str, Pool]] = []

    def start(node_id: str) -> None:
        pools.append(own_pool(shm, node_id, CAPACITY, wall_clock_ns=1))

    for _ in range(10):
        threads = [threading.Thread(target=start, args=(f"n{i}" if i < 6 else "",)) for i in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(pools) == len({node_id for node_id, _ in pools}) == 10
        assert sorted(f"larder-{node_id}.pool" for node_id, _ in pools) == names(shm)
        while pools:
            pools.pop()[1].close()


@pytest.fixture
def small(shm: Path) -> Iterator[Path]:
    """A tmpfs of 4 MiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(shm)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a tmpfs here")
    yield shm
    subprocess.run(["umount", str(shm)], check=True)


async def fill(pool: Pool) -> None:
    try:
        assert await pool.prefault(asyncio.Event())
    finally:
        pool.close()


async def test_a_node_that_lacks_room_says_who_holds_it_and_waits_for_them(
    small: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 3 << 20
    first = own(small, capacity=size)
    await first.prefault(asyncio.Event())
    with running(sys.executable, "-c", CLIENT, str(first.path)) as client:
        first.close()
        found = rf"\d+ bytes are free; process {client.pid} \(python\S*\) maps {size + 4096} bytes of deleted pools"
        monkeypatch.setattr(pool_module, "_ROOM_S", 0.5)
        with pytest.raises(PoolError, match=found):
            await fill(own(small, capacity=size))
        monkeypatch.setattr(pool_module, "_ROOM_S", 30.0)
        caplog.clear()
        filling = asyncio.create_task(fill(own(small, capacity=size)))
        await asyncio.sleep(1.0)
        assert not filling.done()
        assert sum("waiting for room" in each for each in caplog.messages) == 1
    await filling
    assert names(small) == []


async def test_a_node_whose_former_life_filled_everything_starts_again(small: Path) -> None:
    first = own(small, capacity=(4 << 20) - 4096)
    await first.prefault(asyncio.Event())
    with running(sys.executable, "-c", CLIENT, str(first.path)) as client:
        os.close(first._fd)  # as where it is killed
        first._memory.close()
        second = own(small, capacity=(4 << 20) - 4096)
        filling = asyncio.create_task(second.prefault(asyncio.Event()))
        await asyncio.sleep(0.5)
        client.kill()
        assert await filling
        assert second.path.read_bytes()[: len(MAGIC)] == MAGIC
    second.close()


async def test_a_node_that_waits_for_room_can_be_stopped(small: Path) -> None:
    first = own(small, capacity=3 << 20)
    await first.prefault(asyncio.Event())
    second, stop = own(small, "n2", capacity=3 << 20), asyncio.Event()
    filling = asyncio.create_task(second.prefault(stop))
    await asyncio.sleep(0.3)
    stop.set()
    assert await filling is False
    second.close()
    first.close()


async def test_pools_of_running_nodes_are_named_where_they_take_the_room(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_ROOM_UNSEEN_S", 0.3)
    first = own(small, capacity=3 << 20)
    await first.prefault(asyncio.Event())
    with pytest.raises(PoolError, match=rf"bytes are free; .*larder-n1.pool takes {(3 << 20) + 4096} bytes"):
        await fill(own(small, "n2", capacity=3 << 20))
    first.close()


def test_a_folder_that_stays_locked_is_named(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_dir, "_TURN_S", 0.2)
    with pool_dir.turn(shm), pytest.raises(PoolError, match=f"another process keeps the pool folder {shm} locked"):
        own(shm)
