"""The scheduler's lookups and loads: what is asked, what is promised, into which blocks it goes."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from larder.errors import Unavailable
from larder.vllm.answers import ANSWER_TTL_S, GLANCE_S, HELD_FOR_S, HOLD_S, HOLDERS_MAX
from larder.vllm.jobs import SKIP

New = Callable[..., Any]


# ---- lookups


def test_a_lookup_starts_on_arrival_and_is_waited_for_without_blocking(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100)
    bench.scheduler.arrived(request)
    hashes, _ = bench.matcher.asked[0]
    assert hashes == [request.block_hashes[i] for i in (1, 3, 5)]  # 6 blocks in three chunks
    assert bench.scheduler.external_tokens(request, 0) is None
    bench.answer(2)
    assert bench.scheduler.external_tokens(request, 0) == 64
    assert bench.scheduler.external_tokens(request, 32) == 32
    assert len(bench.matcher.asked) == 1


def test_the_whole_prompt_may_be_claimed(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 64)
    bench.scheduler.arrived(request)
    bench.answer(2)
    assert bench.scheduler.external_tokens(request, 0) == 64


def test_no_answer_in_time_is_a_miss_and_the_lookup_is_given_up(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.clock.now += 0.99
    assert bench.scheduler.external_tokens(request, 0) is None
    bench.clock.now += 0.02
    assert bench.scheduler.external_tokens(request, 0) == 0
    assert bench.matcher.asked[0][1].cancelled()
    assert bench.matcher.timeouts == 1
    assert bench.scheduler.take_counts() == {"lookup_failures": 1, "lookup_seconds 1.01": 1}


def test_an_answer_that_is_about_to_come_is_waited_for_one_a_step(
    new_bench: New, new_request: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new_bench()
    requests = [new_request(f"r{i}", 100, seed=i) for i in range(3)]
    for request in requests:
        bench.scheduler.arrived(request)
    started = time.monotonic()
    assert bench.scheduler.external_tokens(requests[0], 0) is None
    assert time.monotonic() - started >= GLANCE_S
    monkeypatch.setattr("larder.vllm.answers.GLANCE_S", 60.0)
    assert bench.scheduler.external_tokens(requests[1], 0) is None  # one was waited for in this step
    bench.step()
    answer = threading.Timer(0.01, bench.matcher.asked[2][1].set_result, [3])
    answer.start()
    assert bench.scheduler.external_tokens(requests[2], 0) == 96
    answer.join()


def test_an_error_is_a_miss(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.matcher.asked[0][1].set_exception(Unavailable("no master"))
    assert bench.scheduler.external_tokens(request, 0) == 0
    assert bench.scheduler.take_counts() == {"lookup_failures": 1, "lookup_seconds 0": 1}


def test_a_lookup_took_until_its_answer_came_not_until_the_engine_looked(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.clock.now += 0.01234
    bench.answer(2)
    bench.clock.now += 0.3
    assert bench.scheduler.external_tokens(request, 0) == 64
    assert bench.scheduler.take_counts() == {"lookup_seconds 0.0123": 1}


def test_a_store_that_is_left_alone_is_not_asked(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100)
    bench.matcher.up = False
    bench.scheduler.arrived(request)
    assert bench.scheduler.external_tokens(request, 0) == 0
    assert bench.matcher.asked == []


def test_a_producer_that_is_no_consumer_does_not_look_up(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(consumer=False), new_request("r", 100)
    bench.scheduler.arrived(request)
    assert bench.scheduler.external_tokens(request, 0) == 0
    assert bench.matcher.asked == []


def test_a_request_that_must_not_read_the_cache_is_not_looked_up(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100, skip_reading_prefix_cache=True)
    bench.scheduler.arrived(request)
    assert bench.scheduler.external_tokens(request, 0) == 0
    assert bench.matcher.asked == []


def test_what_the_engine_has_itself_is_not_waited_for(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100)
    bench.scheduler.arrived(request)
    assert bench.scheduler.external_tokens(request, 96) == 0


def test_an_answer_is_asked_for_again_when_it_has_grown_old(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.answer(3)
    assert bench.scheduler.external_tokens(request, 0) == 96
    bench.clock.now += HELD_FOR_S + 0.1
    assert bench.scheduler.external_tokens(request, 0) is None
    bench.answer(0)
    assert bench.scheduler.external_tokens(request, 0) == 0


def test_a_miss_is_asked_for_again_much_later(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.answer(0)
    bench.clock.now += ANSWER_TTL_S - 0.1
    assert bench.scheduler.external_tokens(request, 0) == 0
    bench.clock.now += 0.2
    assert bench.scheduler.external_tokens(request, 0) is None
    bench.answer(3)
    assert bench.scheduler.external_tokens(request, 0) == 96


def test_an_answer_counts_from_when_it_came_not_from_when_it_was_looked_at(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.answer(3)
    bench.clock.now += HELD_FOR_S + 0.1
    assert bench.scheduler.external_tokens(request, 0) is None
    assert len(bench.matcher.asked) == 2


def test_of_a_long_queue_only_those_hold_whose_turn_comes(new_bench: New, new_request: New) -> None:
    bench = new_bench()
    requests = [new_request(f"r{i}", 100, seed=i) for i in range(100)]
    for request in requests:
        bench.scheduler.arrived(request)
    assert bench.matcher.holds == [HOLD_S] * HOLDERS_MAX + [0.0] * (100 - HOLDERS_MAX)
    for _, future in bench.matcher.asked:
        future.set_result(3)
    bench.clock.now += HELD_FOR_S + 0.1
    # Their turn: all are asked about in one step. The first ask again, and hold; the others wait for theirs.
    assert [bench.scheduler.external_tokens(request, 0) for request in requests] == [None] * 100
    assert bench.matcher.holds[100:] == [HOLD_S] * HOLDERS_MAX
    for _, future in bench.matcher.asked[100:]:
        future.set_result(2)
    assert [bench.scheduler.external_tokens(request, 0) for request in requests[:HOLDERS_MAX]] == [64] * HOLDERS_MAX
    assert bench.scheduler.external_tokens(requests[50], 0) is None


def test_a_turn_that_was_had_or_given_up_makes_room_for_the_next_to_hold(new_bench: New, new_request: New) -> None:
    bench = new_bench()
    for i in range(10 * HOLDERS_MAX):
        request = new_request(f"r{i}", 100, seed=i)
        bench.scheduler.arrived(request)
        bench.answer(3)
        if i % 2:
            assert bench.scheduler.external_tokens(request, 0) == 96
            bench.scheduler.allocated(request, [[1, 2, 3, 4, 5, 6, 7]], 96)
        else:
            bench.scheduler.finished(f"r{i}")
    assert bench.matcher.holds == [HOLD_S] * 10 * HOLDERS_MAX


def test_every_workers_every_group_is_asked_for(new_bench: New, new_request: New) -> None:
    names = [bytes([i]) * 16 for i in range(4)]
    bench, request = new_bench(names=names, groups=2, workers=2), new_request("r", 100)
    bench.scheduler.arrived(request)
    assert [part.namespace for part in bench.matcher.parts] == names


def test_namespaces_of_a_missing_worker_are_refused(new_bench: New) -> None:
    with pytest.raises(ValueError, match="1 namespaces for 2 workers"):
        new_bench(workers=2)


# ---- loads


def test_a_load_names_the_blocks_behind_the_local_ones(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(producer=False), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.answer(3)
    assert bench.scheduler.external_tokens(request, 48) == 48
    bench.scheduler.allocated(request, [[1, 2, 3, 4, 5, 6, 7]], 48)
    plan = bench.step()
    assert [c.blocks for c in plan.loads[0].chunks] == [((SKIP, 4),), ((5, 6),)]
    assert [c.depth for c in plan.loads[0].chunks] == [1, 2]
    assert bench.step().loads == []  # told once
    assert bench.scheduler.take_counts() == {"requested_tokens": 52, "hit_tokens": 48, "lookup_seconds 0": 1}


def test_fewer_tokens_than_promised_may_be_taken(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(producer=False), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.answer(3)
    assert bench.scheduler.external_tokens(request, 0) == 96
    bench.scheduler.allocated(request, [[1, 2, 3, 4, 5, 6, 7]], 48)
    assert [c.blocks for c in bench.step().loads[0].chunks] == [((1, 2),), ((3, SKIP),)]


def test_blocks_without_memory_are_not_loaded(new_bench: New, new_request: New) -> None:
    """A sliding window's group has no blocks for what has slid out; a part without any block is left out."""
    bench, request = new_bench(producer=False, groups=2, names=[b"a" * 16, b"b" * 16]), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.answer(3)
    assert bench.scheduler.external_tokens(request, 0) == 96
    bench.scheduler.allocated(request, [[1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 8, 9, 10, 11]], 96)
    assert [c.blocks for c in bench.step().loads[0].chunks] == [((1, 2), ()), ((3, 4), (SKIP, 8)), ((5, 6), (9, 10))]


def test_tokens_that_were_never_promised_are_a_bug_that_says_so(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100)
    with pytest.raises(RuntimeError, match="32 tokens to load for r"):
        bench.scheduler.allocated(request, [[1, 2, 3]], 32)


def test_a_preempted_request_is_looked_up_again(new_bench: New, new_request: New) -> None:
    bench, request = new_bench(), new_request("r", 100)
    bench.scheduler.arrived(request)
    bench.answer(0)
    assert bench.scheduler.external_tokens(request, 0) == 0
    bench.scheduler.allocated(request, [[1, 2, 3, 4, 5, 6, 7]], 0)
    assert bench.scheduler.external_tokens(request, 0) is None
    bench.answer(3)
    assert bench.scheduler.external_tokens(request, 0) == 96
