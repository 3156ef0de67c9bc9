"""The scheduler's saves: which blocks are offered when, and how long they are held."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from larder.vllm.jobs import StepPlan, WorkerReport

BLOCK = 16
New = Callable[..., Any]


def saved(plan: StepPlan) -> list[tuple[int, tuple[int, ...]]]:
    return [(chunk.block_hash[-1], chunk.blocks[0]) for job in plan.saves for chunk in job.chunks]


def test_chunks_are_saved_as_they_become_whole(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(consumer=False), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.tables["r"] = [[1, 2, 3, 4, 5, 6, 7]]
    plan = bench.step(r=40)
    assert saved(plan) == [(1, (1, 2))]
    assert not plan.saves[0].recheck
    assert plan.saves[0].announce
    request.num_computed_tokens = 40
    assert saved(bench.step(r=60)) == [(3, (3, 4)), (5, (5, 6))]
    request.num_computed_tokens = 100
    assert bench.step(r=1).saves == []


def test_blocks_from_the_engines_own_cache_are_rechecked_not_put_blindly(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(consumer=False), new_request("r", 100, num_computed_tokens=64)
    bench.scheduler.arrived(request)
    bench.tables["r"] = [[1, 2, 3, 4, 5, 6, 7]]
    jobs = {job.recheck: [c.blocks[0] for c in job.chunks] for job in bench.step(r=36).saves}
    assert jobs == {True: [(1, 2), (3, 4)], False: [(5, 6)]}


def test_two_requests_of_one_prompt_save_it_once(new_bench: New, new_request: New) -> None:
    bench = new_bench(consumer=False)
    for name in ("r", "s"):
        bench.scheduler.arrived(new_request(name, 64))
    bench.tables.update(r=[[1, 2, 3, 4]], s=[[5, 6, 7, 8]])
    assert saved(bench.step(r=64, s=64)) == [(1, (1, 2)), (3, (3, 4))]


def test_answered_tokens_are_saved_too_but_nobody_waits_for_them(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(consumer=False), new_request("r", 64)
    bench.scheduler.arrived(request)
    bench.tables["r"] = [list(range(1, 9))]
    bench.step(r=64)
    request.num_computed_tokens = 64
    request.grow(32)
    plan = bench.step(r=32)
    assert saved(plan) == [(5, (5, 6))]
    assert not plan.saves[0].announce


def test_a_step_waits_only_for_a_prefill_that_is_decoded_elsewhere(new_bench: New, new_request: New) -> None:
    bench = new_bench(consumer=False)
    for name, tokens, seed in (("prefill", 1, 1), ("whole", 2, 2)):
        bench.scheduler.arrived(new_request(name, 64, max_tokens=tokens, seed=seed))
    bench.tables.update(prefill=[[1, 2, 3, 4]], whole=[[5, 6, 7, 8]])
    plan = bench.step(prefill=64, whole=64)
    assert {job.announce: [chunk.blocks[0] for chunk in job.chunks] for job in plan.saves} == {
        True: [(1, 2), (3, 4)],
        False: [(5, 6), (7, 8)],
    }


def test_what_another_connector_loads_within_the_step_is_saved_when_its_failure_would_be_known(
    new_bench: New, new_request: New
) -> None:
    bench, request = new_bench(), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.answer(0)
    assert bench.scheduler.external_tokens(request, 16) == 0
    bench.tables["r"] = [[1, 2, 3, 4, 5, 6, 7]]
    bench.scheduler.allocated(request, bench.tables["r"], 0)
    request.num_computed_tokens = 80
    assert bench.step(r=20).saves == []
    request.num_computed_tokens = 16  # it failed: vLLM computes it
    assert bench.step(r=84).saves == []
    request.num_computed_tokens = 100
    offered = [saved(bench.step(r=1)) for _ in range(20)]
    assert [plan for plan in offered if plan] == [[(1, (1, 2)), (3, (3, 4)), (5, (5, 6))]]


def test_what_is_loaded_before_a_request_runs_is_no_reason_to_wait(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(consumer=False), new_request("r", 100)
    bench.scheduler.arrived(request)
    assert bench.scheduler.external_tokens(request, 0) == 0
    bench.tables["r"] = [[1, 2, 3, 4, 5, 6, 7]]
    bench.scheduler.allocated(request, bench.tables["r"], 0)  # another connector's load begins
    assert bench.step().saves == []
    request.num_computed_tokens = 64
    bench.scheduler.allocated(request, bench.tables["r"], 0)  # and has ended
    assert saved(bench.step(r=36)) == [(1, (1, 2)), (3, (3, 4)), (5, (5, 6))]


def test_drafts_and_placeholders_are_not_saved(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(consumer=False), new_request("r", 60)
    bench.scheduler.arrived(request)
    bench.tables["r"] = [[1, 2, 3, 4, 5]]
    assert saved(bench.step(r=68)) == [
        (1, (1, 2)),
        (2, (3,)),
    ]  # tokens 60 to 67 are scheduled, but nobody knows them yet


def test_what_was_loaded_is_not_saved(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.answer(2)
    assert bench.scheduler.external_tokens(request, 0) == 64
    bench.scheduler.allocated(request, [[1, 2, 3, 4, 5, 6, 7]], 64)
    bench.tables["r"] = [[1, 2, 3, 4, 5, 6, 7]]
    request.num_computed_tokens = 64
    assert saved(bench.step(r=36)) == [(5, (5, 6))]


def test_a_consumer_that_is_no_producer_saves_nothing(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(producer=False), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.tables["r"] = [[1, 2, 3, 4, 5, 6, 7]]
    assert bench.step(r=100).saves == []


def test_a_group_that_lost_a_block_leaves_its_part_out(new_bench: New, new_request: New) -> None:
    bench = new_bench(consumer=False, groups=2, names=[b"a" * 16, b"b" * 16])
    request = new_request("r", 64)
    bench.scheduler.arrived(request)
    bench.tables["r"] = [[1, 2, 3, 4], [0, 6, 7, 8]]
    (job,) = bench.step(r=64).saves
    assert [c.blocks for c in job.chunks] == [((1, 2), ()), ((3, 4), (7, 8))]
    assert bench.held() == 6


def test_blocks_are_held_until_every_worker_has_saved_them(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(consumer=False, names=[b"a" * 16, b"b" * 16], workers=2), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.tables["r"] = [[1, 2, 3, 4, 5, 6, 7]]
    plan = bench.step(r=100)
    assert bench.held() == 6
    bench.scheduler.finished("r")
    assert bench.scheduler.saving
    assert bench.scheduler.frees_soon()
    bench.done(plan)
    assert bench.held() == 6
    bench.done(plan)
    assert bench.held() == 0
    assert not bench.scheduler.saving
    assert not bench.scheduler.frees_soon()


def test_blocks_that_others_hold_too_do_not_come_free_soon(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(consumer=False), new_request("r", 32)
    bench.scheduler.arrived(request)
    bench.tables["r"] = [[1, 2]]
    bench.pool.touch([bench.pool.blocks[i] for i in (1, 2)])  # the request itself
    bench.step(r=32)
    assert bench.scheduler.saving
    assert not bench.scheduler.frees_soon()


def test_saves_wait_while_half_the_pool_is_held(new_bench: New, new_request: New) -> None:
    bench = new_bench(consumer=False, blocks=10)
    for name, table in (("r", [1, 2, 3, 4, 5, 6]), ("s", [7, 8])):
        bench.scheduler.arrived(new_request(name, 16 * len(table), seed=ord(name)))
        bench.tables[name] = [table]
    first = bench.step(r=96)
    assert bench.step(s=32).saves == []
    bench.done(first)
    assert saved(bench.step(s=32)) == [(1, (7, 8))]


def test_a_finished_requests_lookup_is_given_up(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.scheduler.finished("r")
    assert bench.matcher.asked[0][1].cancelled()
    bench.scheduler.finished("r")


@pytest.mark.parametrize("seed", range(20))
def test_any_course_of_steps_saves_each_block_once(new_bench: New, new_request: New, seed: int) -> None:
    """Random prompts, step sizes, preemptions, slow workers: the right blocks, the right hash, no reference left."""
    rng = random.Random(seed)
    bench = new_bench(consumer=False, chunk_blocks=rng.randint(1, 4), blocks=4000)
    free = list(range(1, 4000))
    seen: dict[bytes, int] = {}
    requests = [new_request(f"r{i}", rng.randint(1, 700), seed=i) for i in range(8)]
    for request in requests:
        bench.scheduler.arrived(request)
    plans: list[StepPlan] = []
    for _ in range(60):
        scheduled = {}
        for request in rng.sample(requests, rng.randint(0, len(requests))):
            if request.num_computed_tokens == request.num_tokens:
                request.grow(1)
            if rng.random() < 0.05 and request.request_id in bench.tables:
                request.num_computed_tokens = 0  # preempted: its blocks are someone else's now
                del bench.tables[request.request_id]
            tokens = rng.randint(1, request.num_tokens - request.num_computed_tokens)
            table = bench.tables.setdefault(request.request_id, [[]])[0]
            while len(table) * BLOCK < request.num_computed_tokens + tokens:
                table.append(free.pop())
            scheduled[request.request_id] = tokens
        plan = bench.step(**scheduled)
        for job in plan.saves:
            for chunk in job.chunks:
                owner = requests[chunk.block_hash[0]]
                last = int.from_bytes(chunk.block_hash[1:])
                table = bench.tables[owner.request_id][0]
                first = last + 1 - len(chunk.blocks[0])
                assert chunk.blocks[0] == tuple(table[first : last + 1])
                assert (last + 1) * BLOCK <= owner.num_computed_tokens + scheduled[owner.request_id]
                seen[chunk.block_hash] = seen.get(chunk.block_hash, 0) + 1
        for request in requests:
            request.num_computed_tokens += scheduled.get(request.request_id, 0)
        plans.append(plan)
        if rng.random() < 0.5:
            bench.done(plans.pop(rng.randrange(len(plans))))
    for plan in plans:
        bench.done(plan)
    assert bench.held() == 0
    assert seen
    assert set(seen.values()) == {1}


def test_a_failed_load_is_computed_and_not_tried_again(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.answer(3)
    assert bench.scheduler.external_tokens(request, 0) == 96
    bench.scheduler.allocated(request, [[1, 2, 3, 4, 5, 6, 7]], 96)
    bench.step()
    bench.scheduler.report(WorkerReport(failed_loads={"r", "gone"}))
    assert bench.scheduler.external_tokens(request, 0) == 0
    bench.tables["r"] = [[1, 2, 3, 4, 5, 6, 7]]
    assert saved(bench.step(r=100)) == [(1, (1, 2)), (3, (3, 4)), (5, (5, 6))]  # what was bad is put anew
