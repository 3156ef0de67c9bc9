"""What saves hold gives way: to a bound, to requests that wait for blocks, and to a store that refuses."""

from collections.abc import Callable
from typing import Any

from larder.vllm.jobs import WorkerReport
from larder.vllm.pins import BACK_OFF_MAX_S, BACK_OFF_MIN_S, GRACE_DOUBTED_S, GRACE_MIN_S

BLOCK = 16
New = Callable[..., Any]


def start(bench: Any, request: Any, blocks: range) -> Any:
    """The request's first step: all of its prompt is computed."""
    bench.scheduler.arrived(request)
    bench.tables[request.request_id] = [list(blocks)]
    bench.pool.touch([bench.pool.blocks[i] for i in blocks])
    return bench.step(**{request.request_id: request.num_tokens})


def finish(bench: Any, name: str) -> None:
    bench.pool.free_blocks(bench.pool.blocks[i] for i in bench.tables.pop(name)[0])
    bench.scheduler.finished(name)


def refuse(bench: Any, plan: Any) -> None:
    jobs = [job.job_id for job in plan.saves]
    bench.scheduler.report(WorkerReport(dict.fromkeys(jobs, 1), set(jobs)))


def waits_for_blocks(bench: Any, request: Any) -> Any:
    """It is the request's turn, and vLLM finds no blocks for it: it is asked about, and never allocated."""
    assert bench.scheduler.external_tokens(request, 0) == 0
    return bench.step()


def test_the_half_of_the_pool_is_never_exceeded_by_what_is_added(new_bench: New, new_request: New) -> None:
    bench = new_bench(consumer=False, chunk_blocks=8, blocks=40)
    request = new_request("r", 29 * BLOCK)
    plan = start(bench, request, range(1, 30))
    assert [len(chunk.blocks[0]) for job in plan.saves for chunk in job.chunks] == [8, 8]
    request.num_computed_tokens = request.num_tokens
    assert bench.step(r=1).saves == []
    bench.done(plan)
    rest = bench.step(r=1)
    assert [chunk.blocks[0] for job in rest.saves for chunk in job.chunks] == [
        tuple(range(17, 25)),
        tuple(range(25, 30)),
    ]


def test_a_request_that_waits_for_blocks_gets_those_that_only_saves_hold(new_bench: New, new_request: New) -> None:
    bench = new_bench(consumer=False, blocks=40)
    plan = start(bench, new_request("r", 16 * BLOCK), range(1, 17))
    waiting = new_request("s", 30 * BLOCK, seed=1)
    bench.clock.now += 1.01 * GRACE_MIN_S
    assert waits_for_blocks(bench, waiting).given_up == []  # the request itself still has them
    finish(bench, "r")
    given_up = waits_for_blocks(bench, waiting).given_up
    assert given_up == [job.job_id for job in plan.saves]
    assert waits_for_blocks(bench, waiting).given_up == []  # told once
    refuse(bench, plan)
    assert bench.held() == 0
    assert not bench.scheduler.saving


def test_a_save_is_given_the_time_that_saves_take_before_it_gives_way(new_bench: New, new_request: New) -> None:
    bench = new_bench(consumer=False, blocks=400)
    for i in range(30):  # saves take 30 ms
        plan = start(bench, new_request(f"r{i}", 32, seed=i), range(1, 3))
        finish(bench, f"r{i}")
        bench.clock.now += 0.03
        bench.done(plan)
    start(bench, new_request("r", 32, seed=99), range(1, 3))
    finish(bench, "r")
    bench.clock.now += 0.1
    waiting = new_request("s", 32, seed=100)
    assert waits_for_blocks(bench, waiting).given_up == []
    bench.clock.now += 0.02
    assert len(waits_for_blocks(bench, waiting).given_up) == 1


def test_a_store_that_took_nothing_the_last_time_is_given_less(new_bench: New, new_request: New) -> None:
    bench = new_bench(consumer=False)
    refuse(bench, start(bench, new_request("r", 32), range(1, 3)))
    bench.clock.now += 1.01 * BACK_OFF_MIN_S
    start(bench, new_request("s", 32, seed=1), range(3, 5))
    finish(bench, "s")
    bench.clock.now += 1.01 * GRACE_DOUBTED_S
    assert len(waits_for_blocks(bench, new_request("t", 32, seed=2)).given_up) == 1


def test_a_running_request_that_needs_blocks_gets_them_too(new_bench: New, new_request: New) -> None:
    bench = new_bench(consumer=False, blocks=400)
    start(bench, new_request("r", 32), range(1, 3))
    finish(bench, "r")
    bench.clock.now += 1.01 * GRACE_MIN_S
    assert bench.step().given_up == []
    assert bench.scheduler.frees_soon()  # vLLM asks before it would preempt someone
    assert len(bench.step().given_up) == 1


def test_saves_give_way_when_the_pool_runs_low(new_bench: New, new_request: New) -> None:
    bench = new_bench(consumer=False, blocks=100)
    start(bench, new_request("r", 32), range(1, 3))
    finish(bench, "r")
    bench.clock.now += 1.01 * GRACE_MIN_S
    bench.pool.touch(bench.pool.blocks[3:])
    assert len(bench.step().given_up) == 1


def test_a_request_whose_turn_came_and_went_well_takes_nothing(new_bench: New, new_request: New) -> None:
    bench = new_bench(consumer=False, blocks=400)
    start(bench, new_request("r", 32), range(1, 3))
    finish(bench, "r")
    bench.clock.now += 1.01 * GRACE_MIN_S
    other = new_request("s", 32, seed=1)
    assert bench.scheduler.external_tokens(other, 0) == 0
    bench.scheduler.allocated(other, [[3, 4]], 0)
    assert bench.step().given_up == []


def offers(bench: Any, new_request: New, seed: int) -> Any:
    return start(bench, new_request(f"r{seed}", 32, seed=seed % 250), range(1, 3))


def test_a_store_that_refuses_is_left_alone_twice_as_long_each_time(new_bench: New, new_request: New) -> None:
    bench = new_bench(consumer=False)
    wait_s = BACK_OFF_MIN_S
    for seed in range(0, 30, 3):
        plan = offers(bench, new_request, seed)
        assert len(plan.saves) == 1
        refuse(bench, plan)
        bench.clock.now += 0.99 * wait_s
        assert offers(bench, new_request, seed + 1).saves == []
        bench.clock.now += 0.02 * wait_s
        wait_s = min(2 * wait_s, BACK_OFF_MAX_S)
    assert wait_s == BACK_OFF_MAX_S
    plan = offers(bench, new_request, 40)
    bench.done(plan)  # it takes something again: the next refusal is the first
    refuse(bench, offers(bench, new_request, 41))
    bench.clock.now += 1.01 * BACK_OFF_MIN_S
    assert offers(bench, new_request, 42).saves


def test_what_was_refused_together_counts_once(new_bench: New, new_request: New) -> None:
    bench = new_bench(consumer=False)
    plans = [offers(bench, new_request, seed) for seed in range(5)]
    for plan in plans:
        refuse(bench, plan)
    bench.clock.now += 1.01 * BACK_OFF_MIN_S
    assert offers(bench, new_request, 9).saves


def test_what_was_not_offered_for_a_while_is_offered_if_the_request_is_still_there(
    new_bench: New, new_request: New
) -> None:
    bench = new_bench(consumer=False)
    refuse(bench, offers(bench, new_request, 0))
    request = new_request("r1", 32, seed=1)
    assert start(bench, request, range(1, 3)).saves == []
    request.num_computed_tokens = 32
    bench.clock.now += 1.01 * BACK_OFF_MIN_S
    (job,) = bench.step(r1=1).saves
    assert [chunk.blocks for chunk in job.chunks] == [((1, 2),)]
