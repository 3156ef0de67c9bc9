"""A node copies a slice from another node's pool into its own, over shared memory and over the real engine."""

import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from larder.copying import checksum_of
from larder.memory import view_at
from larder.v1 import types_pb2

from services.common.held import HeldCopy
from services.storage_node.core.index import DONE, Outcome
from services.storage_node.engine import P2P, Engine
from services.storage_node.fetcher import Fetcher
from services.storage_node.pool import Pool

CAPACITY = 1 << 20
DATA = bytes(range(256)) * 1024


@pytest.fixture
async def pools() -> AsyncIterator[tuple[Pool, Pool]]:
    made = [Pool(Path("/dev/shm"), f"fetch-{i}", CAPACITY, wall_clock_ns=time.time_ns()) for i in range(2)]  # noqa: S108
    view_at(made[0].data_address + 4096, len(DATA), writable=True)[:] = DATA
    yield made[0], made[1]
    for pool in made:
        pool.close()


def segment(pool: Pool, **ways: object) -> types_pb2.Segment:
    return types_pb2.Segment(id=1, node_id="source", capacity_bytes=CAPACITY, shm_token=pool.header.token, **ways)  # type: ignore[arg-type]


def a_copy(checksum: int, offset: int = 8192) -> HeldCopy:
    return HeldCopy(b"k", 1, len(DATA), 1, 0, 0, offset, len(DATA), checksum, 0, 2)


@pytest.mark.parametrize("way", ["shm", "engine"])
async def test_verified_bytes_arrive_where_they_belong(pools: tuple[Pool, Pool], way: str) -> None:
    source, own = pools
    fetcher = Fetcher(own)
    if way == "shm":
        place = segment(source, shm_path=str(source.path), shm_data_offset=4096)
    else:
        engine = Engine(host="127.0.0.1", unique_name="f", metadata_server=P2P, protocol="tcp", device_names=())
        engine.register(source.data_address, CAPACITY)
        place = segment(source, engine_endpoint=engine.endpoint, engine_base=engine.base, engine_protocol="tcp")
    assert await fetcher.fetch(a_copy(checksum_of(memoryview(DATA))), place, 4096, 5.0) is DONE
    assert view_at(own.data_address + 8192, len(DATA)) == DATA
    if way == "engine":
        assert (await fetcher.fetch(a_copy(7, offset=0), place, 4096, 5.0)).outcome is Outcome.CORRUPT
    await fetcher.close()


async def test_what_cannot_be_fetched_is_said(pools: tuple[Pool, Pool]) -> None:
    source, own = pools
    fetcher = Fetcher(own)
    place = segment(source, shm_path=str(source.path), shm_data_offset=4096)
    assert (await fetcher.fetch(a_copy(7), place, 4096, 5.0)).outcome is Outcome.CORRUPT
    assert "outside the pool" in (await fetcher.fetch(a_copy(7, offset=CAPACITY), place, 4096, 5.0)).reason
    await fetcher.close()
    stranger = Fetcher(own)
    assert "no way to node source" in (await stranger.fetch(a_copy(7), segment(source), 4096, 5.0)).reason
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{nobody.getsockname()[1]}"
    away = segment(source, engine_endpoint=endpoint, engine_base=4096, engine_protocol="tcp")
    answer = await stranger.fetch(a_copy(7), away, 4096, 5.0)
    assert answer.outcome is Outcome.REJECTED
    assert f"node source at {endpoint}: connection refused" in answer.reason
    await stranger.close()
