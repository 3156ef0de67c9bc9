"""The real command storage-node, attached to a master that the test plays."""

import asyncio
import ctypes
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from larder.pool_file import HEADER_BYTES, PoolHeader

COMMAND = str(Path(sys.executable).parent / "storage-node")
CAPACITY = 8 << 20
DEADLINE_S = 30


@asynccontextmanager
async def run_node(master: Any, shm: Path, *more: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        COMMAND, "--master", master.address, "--node-id", "n1", "--dram", "8MiB", "--pool-dir", str(shm),
        "--metrics-port", "0", *more,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=env or None,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        return (await process.stdout.readline()).decode()


async def end_of(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    async with asyncio.timeout(DEADLINE_S):
        output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


def read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_clients_write_into_the_pool_by_the_engine_and_it_leaves_cleanly(master: Any, shm: Path) -> None:
    from mooncake.engine import TransferEngine

    async with run_node(master, shm) as process:
        stream = await master.stream()
        (hello,) = await stream.welcome()
        (segment,) = hello.segments
        pool = shm / "larder-n1.pool"
        line = await line_of(process)
        assert line.startswith(
            f"storage-node ready: node n1, pool {pool}, engine {segment.engine_endpoint}, metrics ht"
        )
        assert segment.shm_path == str(pool)
        header = PoolHeader.unpack(read(pool, 0, HEADER_BYTES))
        assert header == PoolHeader(CAPACITY, segment.shm_token, hello.incarnation)

        client = TransferEngine()
        assert client.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
        source = ctypes.create_string_buffer(b"by the engine", 13)
        for offset in (0, CAPACITY - 13):
            wrote = await asyncio.to_thread(
                client.transfer_sync_write,
                segment.engine_endpoint, ctypes.addressof(source), segment.engine_base + offset, 13,
            )  # fmt: skip
            assert wrote == 0
            assert read(pool, segment.shm_data_offset + offset, 13) == b"by the engine"

        address = line.split("metrics ")[1].strip().removesuffix("/metrics")
        async with aiohttp.ClientSession(address) as http:
            assert (await http.get("/ready")).status == 200
            metrics = await (await http.get("/metrics")).text()
        assert 'larder_node_engine_up{node="n1"} 1.0' in metrics
        assert 'larder_node_capacity_bytes{node="n1",tier="dram"} 8.388608e+06' in metrics
        assert 'larder_build_info{component="storage-node",python="3.' in metrics

        process.send_signal(signal.SIGTERM)
        await stream.farewell()
        status, output, errors = await end_of(process)
        assert (status, output) == (0, "")
        assert "left the master at" in errors
        assert "pre-faulted 100 %" in errors
        assert names(shm) == []


async def test_it_is_not_ready_without_a_master_and_still_stops_cleanly(master: Any, shm: Path) -> None:
    await master.stop()
    async with run_node(master, shm) as process:
        assert process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            while b"cannot attach to the master" not in await process.stderr.readline():
                pass
        process.send_signal(signal.SIGTERM)
        status, output, _ = await end_of(process)
        assert (status, output) == (0, "")
        assert names(shm) == []


async def test_a_killed_nodes_successor_attaches_as_a_later_life(master: Any, shm: Path) -> None:
    async with run_node(master, shm) as process:
        (hello,) = await (await master.stream()).welcome()
        process.send_signal(signal.SIGKILL)
        await end_of(process)
    assert (shm / "larder-n1.pool").exists()
    async with run_node(master, shm):
        (later,) = await (await master.stream()).welcome()
        assert later.incarnation > hello.incarnation
        assert later.segments[0].shm_token != hello.segments[0].shm_token


async def test_a_second_node_with_the_same_id_says_so_and_ends(master: Any, shm: Path) -> None:
    async with run_node(master, shm) as process:
        await (await master.stream()).welcome()
        await line_of(process)
        async with run_node(master, shm) as second:
            status, output, errors = await end_of(second)
        assert (status, output) == (1, "")
        assert errors.startswith(f"storage-node: the pool file {shm}/larder-n1.pool belongs to a running storage node")
        assert len(errors.splitlines()) == 1
        assert process.returncode is None
        assert (shm / "larder-n1.pool").exists()


async def test_a_taken_metrics_port_is_one_clear_line(master: Any, shm: Path) -> None:
    port = master.address.rpartition(":")[2]
    async with run_node(master, shm, "--metrics-port", port) as process:
        status, _, errors = await end_of(process)
        assert status == 1
        assert errors.startswith(f"storage-node: cannot listen on 127.0.0.1:{port} for metrics: ")
        assert len(errors.splitlines()) == 1
        assert names(shm) == []


async def test_without_an_engine_it_serves_shared_memory_and_says_how_to_mend_it(
    master: Any, shm: Path, tmp_path: Path
) -> None:
    (tmp_path / "mooncake").mkdir()
    (tmp_path / "mooncake" / "__init__.py").write_text("raise ImportError('libcudart.so.12 is missing')")
    async with run_node(master, shm, PYTHONPATH=str(tmp_path)) as process:
        stream = await master.stream()
        (hello,) = await stream.welcome()
        assert hello.segments[0].engine_endpoint == ""
        assert hello.segments[0].shm_path == str(shm / "larder-n1.pool")
        assert "engine none" in await line_of(process)
        process.send_signal(signal.SIGTERM)
        await stream.farewell()
        status, _, errors = await end_of(process)
        assert status == 0
        assert "libcudart.so.12 is missing; install the package mooncake-transfer-engine-non-cuda" in errors


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("--dram", "2XB", "--dram 2XB: not a size"),
        (
            "--dram",
            "64",
            "--dram 64: expected at least 1000000 bytes, a smaller pool holds no KV block; "
            "or is a unit missing, as in 64GB?",
        ),
        ("--dramm", "2GB", "unknown flag --dramm (did you mean --dram?)"),
        ("--node-id", "../n1", "--node-id ../n1: "),
        ("--advertise", "0.0.0.0", "--advertise 0.0.0.0: other hosts cannot connect to that"),  # noqa: S104
        ("--advertise", "[::]", "--advertise [::]: other hosts cannot connect to that"),
        ("--host", "here:9102", "--host here:9102: not a name or address of a host"),
        ("--metadata-server", "redis://x", "--metadata-server redis://x: "),
        ("--master", "nowhere", "--master nowhere: 'nowhere' is not HOST:PORT"),
    ],
)
async def test_bad_settings_are_refused_in_one_line(flag: str, value: str, reason: str, master: Any, shm: Path) -> None:
    async with run_node(master, shm, flag, value) as process:
        status, _, errors = await end_of(process)
    assert status == 2
    assert errors.startswith(f"storage-node: {reason}")
    assert len(errors.splitlines()) == 1
