"""Weights that change while an engine serves: its lookups and saves move on, and what is of both is not shared."""

import time
from collections.abc import Callable
from typing import Any

import torch
from larder.vllm.identity.watch import Watch
from larder.vllm.jobs import Adapter, ChunkBlocks, LoadJob, SaveJob, StepPlan, WorkerReport
from larder.vllm.keys import moved
from larder.vllm.link import StoreLink
from larder.vllm.memory import KVMemory, rows_of
from larder.vllm.transfer import DirectPath
from larder.vllm.worker import StoreWorker

BLOCK = 16
New = Callable[..., Any]
ONE, TWO = b"1" * 16, b"2" * 16


def ask(bench: Any, new_request: New, name: str = "r", **more: Any) -> Any:
    bench.tables[name] = [list(range(1, 8))]
    return new_request(name, 100, **more)


def test_nothing_is_looked_up_or_saved_before_the_weights_have_a_name(new_bench: New, new_request: New) -> None:
    bench = new_bench()
    bench.scheduler.set_weights(None)
    request = ask(bench, new_request)
    bench.scheduler.arrived(request)
    assert bench.scheduler.external_tokens(request, 0) == 0
    assert not bench.matcher.asked
    assert not bench.step(r=100).saves
    bench.scheduler.set_weights(ONE)
    plan = bench.step(r=100)
    assert plan.weights == ONE
    assert plan.saves


def test_lookups_and_saves_are_under_the_weights_name(new_bench: New, new_request: New) -> None:
    bench = new_bench()
    bench.scheduler.set_weights(ONE)
    before = [part.namespace for part in asked(bench, new_request)]
    bench.scheduler.renew()
    after = [part.namespace for part in asked(bench, new_request)]
    assert before == [moved(b"a" * 16, ONE)]
    assert before != after
    assert bench.step().weights not in (ONE, b"")


def asked(bench: Any, new_request: New) -> Any:
    request = ask(bench, new_request, name=f"r{len(bench.matcher.asked)}")
    bench.scheduler.arrived(request)
    return bench.matcher.parts


def test_a_request_that_runs_through_a_reset_is_neither_saved_nor_loaded_any_more(
    new_bench: New, new_request: New
) -> None:
    bench = new_bench()
    bench.scheduler.set_weights(ONE)
    running, waiting = ask(bench, new_request), ask(bench, new_request, "other", seed=1)
    for request in (running, waiting):
        bench.scheduler.arrived(request)
    running.num_computed_tokens = 40
    lookups = len(bench.matcher.asked)
    bench.scheduler.renew()
    assert bench.scheduler.external_tokens(running, 0) == 0
    assert bench.scheduler.external_tokens(waiting, 0) is None  # it is looked up anew, under the new name
    assert len(bench.matcher.asked) == lookups + 1
    plan = bench.step(r=60, other=100)
    [save] = plan.saves
    assert {chunk.block_hash for chunk in save.chunks} <= set(waiting.block_hashes)


def test_an_exchange_that_a_worker_noticed_is_a_reset_once(new_bench: New) -> None:
    bench = new_bench()
    bench.scheduler.set_weights(ONE)
    bench.scheduler.report(WorkerReport(outdated={ONE}))
    renewed = bench.step().weights
    assert renewed != ONE
    bench.scheduler.report(WorkerReport(outdated={ONE}))  # the other worker's word of the same
    assert bench.step().weights == renewed


def test_a_hit_in_the_engines_own_cache_under_a_suspect_name_is_not_passed_on(new_bench: New, new_request: New) -> None:
    class Suspect:
        adapter = Adapter(1, "a")
        suspect = True

        def __init__(self, request: Any) -> None:
            self.hashes = lambda: request.block_hashes

    bench = new_bench()
    bench.scheduler._naming = Suspect
    computed, hit = ask(bench, new_request), ask(bench, new_request, "other", seed=1)
    assert bench.scheduler.external_tokens(computed, 0) is None
    assert bench.scheduler.external_tokens(hit, 32) == 0
    plan = bench.step(r=100, other=68)
    [save] = plan.saves
    assert save.adapter == Adapter(1, "a")
    assert {chunk.block_hash for chunk in save.chunks} <= set(computed.block_hashes)


def test_names_that_are_not_known_yet_are_waited_for_as_a_lookup_is(new_bench: New, new_request: New) -> None:
    class Unknown:
        adapter = None
        suspect = False
        known: Any = None

        def __init__(self, request: Any) -> None:
            self.request = request

        def hashes(self) -> Any:
            return Unknown.known

    bench = new_bench()
    bench.scheduler._naming = Unknown
    request = ask(bench, new_request)
    bench.scheduler.arrived(request)
    assert bench.scheduler.external_tokens(request, 0) is None
    assert not bench.step(r=100).saves
    bench.clock.now += 2
    assert bench.scheduler.external_tokens(request, 0) == 0
    Unknown.known = request.block_hashes
    assert bench.step(r=100).saves  # what was not offered then is now
    assert bench.scheduler.external_tokens(request, 0) is None


def make_worker(link: StoreLink, watch: Watch) -> StoreWorker:
    memory = KVMemory(((rows_of("layer", torch.zeros(8, 4, dtype=torch.uint8), 8),),))
    path = DirectPath(memory, copies=1)
    return StoreWorker(link, path, namespaces=[b"a" * 16], load_timeout_s=5.0, save_timeout_s=5.0, watch=watch)


def save(number: int, adapter: Adapter | None = None) -> SaveJob:
    return SaveJob(number, (ChunkBlocks(b"h", 0, ((1,),)),), recheck=False, announce=False, adapter=adapter)


def load(adapter: Adapter | None = None) -> LoadJob:
    return LoadJob("r", (ChunkBlocks(b"h", 0, ((2,),)),), adapter)


def report_of(worker: StoreWorker) -> WorkerReport:
    deadline = time.monotonic() + 5
    while (report := worker.take_report()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return report


def test_a_worker_whose_weights_were_exchanged_saves_nothing_under_their_old_name(link: StoreLink, store: Any) -> None:
    watch = Watch()
    worker = make_worker(link, watch)
    worker.follow(ONE)
    worker.save([save(0)])
    assert report_of(worker).saves_done == {0: 1}
    watch.exchanges += 1
    worker.follow(ONE)
    worker.save([save(1)])
    worker.start_loads([load()])
    report = report_of(worker)
    assert report.outdated == {ONE}
    assert report.failed_loads == {"r"}
    worker.follow(TWO)
    worker.save([save(2)])
    assert report_of(worker).saves_done == {2: 1}
    assert set(store.objects) == {moved(b"a" * 16, ONE) + b"h", moved(b"a" * 16, TWO) + b"h"}


def test_an_exchange_before_the_first_step_is_noticed(link: StoreLink, store: Any) -> None:
    watch = Watch()
    worker = make_worker(link, watch)
    watch.exchanges += 1
    worker.follow(b"")
    worker.follow(ONE)
    worker.save([save(0)])
    assert ONE in report_of(worker).outdated
    assert not store.objects


def test_a_load_that_ends_after_a_reset_has_failed(link: StoreLink, store: Any) -> None:
    worker = make_worker(link, Watch())
    store.objects[moved(b"a" * 16, ONE) + b"h"] = b"kvkv"
    worker.follow(ONE)
    store.hold.clear()
    worker.start_loads([load()])
    worker.follow(TWO)
    link.call(lambda _: _set(store))
    assert report_of(worker).failed_loads == {"r"}
    assert worker.take_ended().bad_blocks == {2}


async def _set(store: Any) -> None:
    store.hold.set()


def test_a_worker_saves_and_loads_with_the_adapter_in_memory_only(link: StoreLink, store: Any) -> None:
    watch, adapter = Watch(), Adapter(3, "state")
    worker = make_worker(link, watch)
    worker.save([save(0, adapter)])
    assert report_of(worker).saves_done == {0: 1}
    assert not store.objects
    watch.adapters[3] = "state"
    worker.save([save(1, adapter)])
    report = report_of(worker)
    while not report.saves_done:
        report.aggregate(report_of(worker))
    assert report.adapters == {3: "state"}
    assert len(store.objects) == 1
    watch.adapters[3] = "another"
    worker.start_loads([load(adapter)])
    assert report_of(worker).failed_loads == {"r"}


def test_saves_under_way_do_not_hinder_a_reset_and_keep_their_blocks(new_bench: New, new_request: New) -> None:
    bench = new_bench()
    bench.scheduler.arrived(ask(bench, new_request))
    bench.scheduler.arrived(ask(bench, new_request, "other", seed=1))  # another save of the same blocks
    plan = bench.step(r=100)
    other = bench.step(other=100)
    held, seen = bench.held(), []
    assert held > 6
    reset = bench.scheduler.beside_saves(lambda: not seen.append(bench.held()))
    assert reset()
    assert seen == [0]
    assert bench.held() == held
    bench.done(plan)
    bench.done(other)
    assert bench.held() == 0


def test_nothing_reads_memory_that_is_given_away(link: StoreLink, store: Any) -> None:
    watch = Watch()
    worker = make_worker(link, watch)
    store.hold.clear()
    worker.save([save(0)])
    for reader in watch.readers:
        reader.quiet()
    assert report_of(worker).saves_done == {0: 1}
    assert not store.objects


def test_workers_that_read_different_adapters_have_none_in_common() -> None:
    both = WorkerReport(adapters={1: "a", 2: "b"}).aggregate(WorkerReport(adapters={1: "a", 2: "c"}))
    assert both.adapters == {1: "a", 2: ""}


def test_a_step_says_what_weights_are_called() -> None:
    assert StepPlan(ONE).weights == ONE
