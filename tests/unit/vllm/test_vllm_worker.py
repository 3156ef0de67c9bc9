"""The worker's half over real memory, straight and through staging, against a store that fails in every way it can."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from larder.errors import Unavailable
from larder.vllm.jobs import SKIP, ChunkBlocks, LoadJob, SaveJob
from larder.vllm.link import StoreLink
from larder.vllm.memory import KVMemory, rows_of
from larder.vllm.transfer import DirectPath, Path, StagedPath
from larder.vllm.worker import ANNOUNCE_S, StoreWorker

BLOCKS, CHUNK = 16, 2
NAMES = (b"a" * 16, b"b" * 16)


def memory_of(seed: int) -> KVMemory:
    generator = torch.Generator().manual_seed(seed)
    caches = [torch.randint(0, 256, (BLOCKS, 2, 4, 8), dtype=torch.uint8, generator=generator) for _ in range(4)]
    rows = [rows_of(f"layer.{i}", cache, BLOCKS) for i, cache in enumerate(caches)]
    return KVMemory((tuple(rows[:2]), tuple(rows[2:])))


def contents(memory: KVMemory, group: int, block: int) -> list[bytes]:
    return [rows[block].numpy().tobytes() for rows in memory.groups[group]]


async def never(_: Any) -> list[bool]:
    await asyncio.Event().wait()
    return []


def chunk(name: str, *blocks: tuple[int, ...], depth: int = 0) -> ChunkBlocks:
    return ChunkBlocks(name.encode().ljust(32, b"."), depth, blocks)


def job(*chunks: ChunkBlocks, recheck: bool = False, announce: bool = True) -> SaveJob:
    return SaveJob(7, chunks, recheck, announce)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 5
    while not (value := condition()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.002)
    return value


class Rig:
    def __init__(self, link: StoreLink, way: str, *, timeout_s: float = 5.0) -> None:
        self.memory = memory_of(1)
        self.link = link
        path: Path
        if way == "direct":
            path = DirectPath(self.memory, copies=2)
        else:
            path = StagedPath(self.memory, chunk_blocks=[CHUNK, CHUNK], copies=2)
        self.worker = StoreWorker(link, path, namespaces=NAMES, load_timeout_s=timeout_s, save_timeout_s=timeout_s)

    def on_loop(self, call: Callable[[], Any]) -> None:
        async def work(_: Any) -> None:
            call()

        self.link.call(work).result(5)


@pytest.fixture(params=["direct", "staged"])
def new_rig(request: pytest.FixtureRequest, link: StoreLink) -> Callable[..., Rig]:
    return lambda **options: Rig(link, request.param, **options)


def test_what_is_saved_comes_back_into_other_blocks(new_rig: Callable[..., Rig], store: Any) -> None:
    rig = new_rig()
    worker = rig.worker
    chunks = [chunk("x", (1, 2), (3, 4)), chunk("y", (5, 9), (), depth=1), chunk("z", (6,), (7,), depth=2)]
    worker.save([job(*chunks)])
    assert until(worker.take_report).saves_done == {7: 1}
    assert sorted(store.objects) == sorted(
        NAMES[g] + c.block_hash for c in chunks for g, blocks in enumerate(c.blocks) if blocks
    )
    assert store.depths[NAMES[0] + chunks[1].block_hash] == 1
    saved = {b: contents(rig.memory, g, b) for g, b in ((0, 1), (0, 2), (1, 3), (1, 4), (0, 5), (0, 9), (0, 6), (1, 7))}

    loads = [chunk("x", (10, SKIP), (11, 12)), chunk("y", (13, 14), (), depth=1), chunk("z", (15,), (0,), depth=2)]
    worker.start_loads([LoadJob("r", tuple(loads))])
    ended = until(lambda: (e := worker.take_ended()).received and e)
    assert ended.received == {"r"}
    assert not ended.failed
    assert not ended.bad_blocks
    for old, group, new in ((1, 0, 10), (3, 1, 11), (4, 1, 12), (5, 0, 13), (9, 0, 14), (6, 0, 15), (7, 1, 0)):
        assert contents(rig.memory, group, new) == saved[old]
    assert worker.take_report() is None
    counts = worker.take_counts()
    size = rig.memory.object_bytes(0, 1)
    assert counts["put_objects"] == counts["got_objects"] == 5
    assert counts["put_bytes shared_memory"] == counts["got_bytes shared_memory"] == 8 * size
    assert not counts.keys() & {"failed_puts", "failed_gets", "put_bytes engine", "got_bytes engine"}
    assert [name.rpartition(" ")[0] for name in counts if name.startswith(("load_seconds", "save_seconds"))] == [
        "save_seconds shared_memory",
        "load_seconds shared_memory",
    ]


def test_what_is_missing_or_corrupt_is_named_and_the_rest_arrives(new_rig: Callable[..., Rig], store: Any) -> None:
    rig = new_rig()
    rig.worker.save([job(*(chunk(n, (i, i + 1), ()) for n, i in (("x", 1), ("y", 3), ("z", 5))))])
    until(rig.worker.take_report)
    store.corrupt.add(NAMES[0] + chunk("y").block_hash)
    loads = [
        chunk("x", (8, 9), ()),
        chunk("y", (SKIP, 10), ()),
        chunk("never put", (11, 12), ()),
        chunk("z", (13, 14), ()),
    ]
    before = contents(rig.memory, 0, 10)
    rig.worker.start_loads([LoadJob("r", tuple(loads))])
    ended = until(lambda: (e := rig.worker.take_ended()).received and e)
    assert ended.bad_blocks == {10, 11, 12}
    assert contents(rig.memory, 0, 10) == before
    assert ended.failed == {"r"}
    assert rig.worker.take_report().failed_loads == {"r"}
    assert contents(rig.memory, 0, 8) == contents(rig.memory, 0, 1)
    assert contents(rig.memory, 0, 14) == contents(rig.memory, 0, 6)
    assert rig.worker.take_counts()["failed_gets"] == 2


def test_an_object_that_does_not_fill_its_blocks_is_no_load(
    new_rig: Callable[..., Rig], store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rig = new_rig()
    rig.worker.save([job(chunk("x", (1, 2), ()))])
    until(rig.worker.take_report)
    key = NAMES[0] + chunk("x").block_hash
    size = len(store.objects[key])
    store.objects[key] = store.objects[key][:-1]
    with caplog.at_level(logging.WARNING, "vllm.larder"):
        rig.worker.start_loads([LoadJob("r", (chunk("x", (8, 9), ()),))])
        ended = until(lambda: (e := rig.worker.take_ended()).received and e)
        until(lambda: rig.worker.take_report() is None and caplog.records)
    assert ended.bad_blocks == {8, 9}
    assert f"an object of {size - 1} bytes where {size} were expected" in caplog.text


def test_why_loads_failed_is_said_in_one_line_without_any_statistics(
    new_rig: Callable[..., Rig], store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rig = new_rig()
    chunks = [chunk(name, (i, i + 1), ()) for name, i in (("x", 1), ("y", 3), ("z", 5))]
    rig.worker.save([job(*chunks)])
    until(rig.worker.take_report)
    store.corrupt |= {NAMES[0] + chunk(name).block_hash for name in "yz"}
    with caplog.at_level(logging.WARNING, "vllm.larder"):
        rig.worker.start_loads([LoadJob("r", (*chunks, chunk("never put", (7, 8), ())))])
        until(lambda: rig.worker.take_report() is None and caplog.records)  # asked after every step
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "Larder: 3 of 4 objects were not loaded, and are computed: corrupt on purpose (2 of them)"


def test_a_late_load_is_given_up_and_all_its_blocks_named(new_rig: Callable[..., Rig], store: Any) -> None:
    rig = new_rig(timeout_s=0.1)
    rig.on_loop(store.hold.clear)
    before = contents(rig.memory, 0, 1)
    rig.worker.start_loads([LoadJob("r", (chunk("x", (1, 2), (3, SKIP)),))])
    ended = until(lambda: (e := rig.worker.take_ended()).received and e)
    assert ended.bad_blocks == {1, 2, 3}
    rig.on_loop(store.hold.set)
    assert contents(rig.memory, 0, 1) == before


def test_an_unreachable_store_fails_loads_at_once_and_drops_saves(
    new_rig: Callable[..., Rig], store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rig = new_rig()
    store.fail = Unavailable("gone")
    with caplog.at_level(logging.WARNING, "vllm.larder"):
        for name in ("r", "s", "t"):
            rig.worker.start_loads([LoadJob(name, (chunk("x", (1, 2), ()),))])
            ended = until(lambda: (e := rig.worker.take_ended()).received and e)
            assert ended.bad_blocks == {1, 2}
        started = time.monotonic()
        rig.worker.save([job(chunk("x", (1, 2), (3, 4)))])
        assert time.monotonic() - started < 0.05
    assert rig.worker.take_report().saves_done == {7: 1}
    assert rig.worker.take_counts()["dropped_puts"] == 2
    assert not [name for name, _ in store.calls if name == "put_many"]
    assert len(caplog.records) <= 2  # one for the store, one for the first load


def test_a_step_ends_when_the_master_knows_of_its_puts_not_when_the_bytes_are_there(
    new_rig: Callable[..., Rig], store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("larder.vllm.worker.ANNOUNCE_S", 10)
    rig = new_rig()
    rig.on_loop(store.hold.clear)
    rig.on_loop(store.hold_start.clear)
    release = threading.Timer(0.03, lambda: rig.on_loop(store.hold_start.set))
    release.start()
    started = time.monotonic()
    rig.worker.save([job(chunk("x", (1, 2), ()))])
    assert 0.02 < time.monotonic() - started < 5
    assert rig.worker.take_report() is None
    rig.on_loop(store.hold.set)
    assert until(rig.worker.take_report).saves_done == {7: 1}
    release.join()


def test_at_most_one_step_waits_for_a_master_that_is_frozen(
    new_rig: Callable[..., Rig], store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = new_rig()
    rig.on_loop(store.hold_start.clear)
    monkeypatch.setattr(store, "exists", never)
    started = time.monotonic()
    rig.worker.save([job(chunk("x", (1, 2), ())), job(chunk("y", (3, 4), ()))])
    assert ANNOUNCE_S <= time.monotonic() - started < 10 * ANNOUNCE_S
    started = time.monotonic()
    for _ in range(100):
        rig.worker.save([job(chunk("z", (5, 6), ()))])
    assert time.monotonic() - started < 50 * ANNOUNCE_S
    assert rig.worker.take_counts()["dropped_puts"] == 100
    monkeypatch.undo()
    rig.on_loop(store.hold_start.set)
    rig.worker.take_report()
    until(rig.link.ready)
    rig.worker.save([job(chunk("z", (5, 6), ()))])
    assert NAMES[0] + chunk("z").block_hash in until(lambda: rig.worker.take_report() and store.objects)


def test_a_master_that_hears_of_no_save_is_in_doubt_also_where_no_step_waits(
    new_rig: Callable[..., Rig], store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("larder.vllm.worker.UNHEARD_S", 0.05)
    rig = new_rig()
    rig.on_loop(store.hold_start.clear)
    rig.worker.save([job(chunk("x", (1, 2), ()), announce=False)])
    assert rig.link.ready()
    time.sleep(0.06)
    monkeypatch.setattr(store, "exists", never)
    rig.worker.save([job(chunk("y", (3, 4), ()), announce=False)])
    assert not rig.link.ready()
    assert rig.worker.take_counts()["dropped_puts"] == 1
    rig.on_loop(store.hold_start.set)


def test_a_save_that_is_given_up_ends_at_once_and_is_never_stored(new_rig: Callable[..., Rig], store: Any) -> None:
    rig = new_rig()
    rig.on_loop(store.hold.clear)
    rig.worker.save([job(chunk("x", (1, 2), ()), announce=False)])
    rig.worker.give_up([8])
    time.sleep(0.02)
    assert rig.worker.take_report() is None  # another's
    rig.worker.give_up([7])
    report = until(rig.worker.take_report)
    assert (report.saves_done, report.refused) == ({7: 1}, {7})
    rig.on_loop(store.hold.set)
    assert store.objects == {}


def test_a_job_of_which_something_was_stored_was_not_refused(new_rig: Callable[..., Rig], store: Any) -> None:
    rig = new_rig()
    x, y = chunk("x", (1, 2), ()), chunk("y", (3, 4), ())
    store.refused.add(NAMES[0] + x.block_hash)
    rig.worker.save([job(x, y)])
    assert until(rig.worker.take_report).refused == set()
    rig.worker.save([job(x)])
    assert until(rig.worker.take_report).refused == {7}


def test_a_step_does_not_wait_for_what_nobody_asks_for(new_rig: Callable[..., Rig], store: Any) -> None:
    rig = new_rig()
    rig.on_loop(store.hold_start.clear)
    started = time.monotonic()
    rig.worker.save([job(chunk("x", (1, 2), ()), announce=False)])
    assert time.monotonic() - started < 0.05
    rig.on_loop(store.hold_start.set)


def test_a_recheck_puts_only_what_is_gone(new_rig: Callable[..., Rig], store: Any) -> None:
    rig = new_rig()
    x, y = chunk("x", (1, 2), ()), chunk("y", (3, 4), ())
    store.objects[NAMES[0] + x.block_hash] = b"there"
    rig.worker.save([job(x, y, recheck=True)])
    until(rig.worker.take_report)
    assert [c for c in store.calls if c[0] == "put_many"] == [("put_many", 1)]
    counts = rig.worker.take_counts()
    assert (counts["existed_objects"], counts["put_objects"]) == (1, 1)
    assert counts["existed_bytes"] == counts["put_bytes shared_memory"] == 2 * rig.memory.object_bytes(0, 1)
    assert "failed_puts" not in counts


def test_what_went_by_the_engine_counts_there_and_what_did_not_move_nowhere(
    new_rig: Callable[..., Rig], store: Any
) -> None:
    rig, x = new_rig(), chunk("x", (1, 2), ())
    store.transport = "engine"
    for _ in range(2):  # the second time it is there
        rig.worker.save([job(x)])
        until(rig.worker.take_report)
    counts = rig.worker.take_counts()
    assert counts["put_bytes engine"] == counts["existed_bytes"] == 2 * rig.memory.object_bytes(0, 1)
    assert "put_bytes shared_memory" not in counts
    ways = [name.split(" ")[1] for name in counts if name.startswith("save_seconds")]
    assert sorted(ways) == ["engine", "none"]


def test_a_put_that_fails_is_counted_and_ends_the_job(new_rig: Callable[..., Rig], store: Any) -> None:
    rig = new_rig()
    x, y = chunk("x", (1, 2), ()), chunk("y", (3, 4), ())
    store.refused.add(NAMES[0] + x.block_hash)
    rig.worker.save([job(x, y)])
    assert until(rig.worker.take_report).saves_done == {7: 1}
    counts = rig.worker.take_counts()
    assert (counts["put_objects"], counts["failed_puts"]) == (1, 1)


def test_a_late_put_is_given_up_and_its_blocks_let_go(new_rig: Callable[..., Rig], store: Any) -> None:
    rig = new_rig(timeout_s=0.1)
    rig.on_loop(store.hold.clear)
    rig.worker.save([job(chunk("x", (1, 2), ()))])
    assert until(rig.worker.take_report).saves_done == {7: 1}
    assert rig.worker.take_counts()["failed_puts"] == 1
    assert store.objects == {}


def test_an_error_that_should_not_be_is_logged_as_one(
    new_rig: Callable[..., Rig], store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rig = new_rig()
    store.fail = ZeroDivisionError("a bug")
    with caplog.at_level(logging.ERROR, "vllm.larder"):
        rig.worker.start_loads([LoadJob("r", (chunk("x", (1, 2), ()),))])
        ended = until(lambda: (e := rig.worker.take_ended()).received and e)
    assert ended.bad_blocks == {1, 2}
    assert caplog.records[0].exc_info is not None


def test_closing_lets_puts_end_first(new_rig: Callable[..., Rig], store: Any) -> None:
    rig = new_rig()
    rig.on_loop(store.hold.clear)
    rig.worker.save([job(chunk("x", (1, 2), ()))])
    release = threading.Timer(0.05, lambda: rig.on_loop(store.hold.set))
    release.start()
    rig.worker.close()
    release.join()
    assert len(store.objects) == 1
    assert store.closed


def test_more_objects_than_slots_go_through_in_turns(link: StoreLink, store: Any) -> None:
    """Staging for two objects, and five to move each way."""
    memory = memory_of(2)
    path = StagedPath(memory, chunk_blocks=[CHUNK, CHUNK], copies=1, staging_bytes=1)
    worker = StoreWorker(link, path, namespaces=NAMES, load_timeout_s=5.0, save_timeout_s=5.0)
    names = "vwxyz"
    worker.save([job(*(chunk(n, (i,), ()) for i, n in enumerate(names, 1)))])
    until(worker.take_report)
    assert [count for name, count in store.calls if name == "put_many"] == [2, 2, 1]
    worker.start_loads([LoadJob("r", tuple(chunk(n, (i,), ()) for i, n in enumerate(names, 8)))])
    assert not until(lambda: (e := worker.take_ended()).received and e).bad_blocks
    assert all(contents(memory, 0, i) == contents(memory, 0, i + 7) for i in range(1, 6))
