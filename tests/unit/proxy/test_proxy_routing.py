"""Routes by themselves: what follows each outcome, and that every route ends and leaves no load behind."""

import itertools
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core.engine import Address, Handover, Health, Probe, Role
from services.proxy.core.fleet import FAILURES_MAX, Fleet
from services.proxy.core.outcomes import Outcome
from services.proxy.core.router import BUDGET_MAX, Router
from services.proxy.core.routing import RERUNS_MAX, Decision, Decode, Finished, Pair, Prefill, Route, Unserved
from services.proxy.core.scheduling import Ask, make_policy

UNSEEN = [Outcome.UNREACHABLE, Outcome.UNCONNECTED, Outcome.BUSY]
RERUN = [Outcome.BROKEN, Outcome.TIMED_OUT, Outcome.DIED]


def router(prefills: int, decodes: int, handover: Handover | None = Handover.STORE) -> Router:
    fleet = Fleet()
    for role, count in ((Role.PREFILL, prefills), (Role.DECODE, decodes)):
        for n in range(count):
            fleet.add(role, Address(f"{role[0]}{n}"))
    return Router(fleet, {role: make_policy("round_robin", Random(1)) for role in Role}, handover)


def pushing(prefills: int, decodes: int) -> Router:
    routes = router(prefills, decodes, Handover.PUSH)
    for engine in routes.fleet.engines(Role.PREFILL):
        routes.fleet.learned(engine, Handover.PUSH, (f"id-{engine.address}",))
    return routes


def said(decision: Decision) -> str:
    """A word for a decision: p0, d0, d0! (alone), d0< (fetching), p0+d0, finished, unserved(d0,d1)? (may have run)."""
    match decision:
        case Prefill(leg):
            return str(leg.engine.address)
        case Decode(leg, alone, fetching):
            return f"{leg.engine.address}{'!' * alone}{'<' * fetching}"
        case Pair(prefill, decode):
            return f"{prefill.engine.address}+{decode.engine.address}"
        case Finished():
            return "finished"
        case Unserved(failed, may_have_run):
            return f"unserved({','.join(failed)}){'?' * may_have_run}"


def role_of(decision: Decision) -> Role:
    return Role.PREFILL if isinstance(decision, Prefill) else Role.DECODE


def walk(
    routes: Router, *outcomes: Outcome | tuple[Role, Outcome], prefill: bool = True, repeatable: bool = True
) -> list[str]:
    """The decisions of one route. A pair's outcome names the leg."""
    route = Route(routes, Ask(10), prefill=prefill, repeatable=repeatable)
    decision = route.first(0)
    told = [said(decision)]
    for outcome in outcomes:
        role, what = outcome if isinstance(outcome, tuple) else (role_of(decision), outcome)
        decision = route.next(role, what, 0)
        told.append(said(decision))
        routes.fleet.check()
    route.close()
    route.close()
    assert not any(engine.requests for role in Role for engine in routes.fleet.engines(role))
    return told


DONE = Outcome.DONE


def test_each_role_takes_turns_of_its_own() -> None:
    routes = router(2, 3)
    walks = [walk(routes, DONE, DONE) for _ in range(6)]
    assert walks == [[f"p{n % 2}", f"d{n % 3}<", "finished"] for n in range(6)]


def test_a_request_without_a_prefill_leg_goes_straight_to_decode() -> None:
    assert walk(router(2, 1), DONE, prefill=False) == ["d0", "finished"]
    assert walk(router(2, 1, Handover.NONE), DONE) == ["d0", "finished"]
    assert walk(router(0, 1), DONE) == ["d0", "finished"]


def test_nothing_is_prefilled_without_a_decode_engine() -> None:
    assert walk(router(2, 0)) == ["unserved()"]
    routes = router(1, 1)
    routes.fleet.probed(routes.fleet.engines(Role.DECODE)[0], Probe.REFUSED)
    assert walk(routes) == ["unserved()"]
    assert walk(pushing(1, 0)) == ["unserved()"]


@pytest.mark.parametrize("failure", UNSEEN)
def test_engines_that_did_not_see_the_request_are_passed_over_without_limit(failure: Outcome) -> None:
    assert walk(router(5, 1), *[failure] * 5, DONE) == ["p0", "p1", "p2", "p3", "p4", "d0!", "finished"]
    decodes = walk(router(1, 5), DONE, *[failure] * 5)
    assert decodes == ["p0", "d0<", "d1<", "d2<", "d3<", "d4<", "unserved(d0,d1,d2,d3,d4)"]


@pytest.mark.parametrize("failure", RERUN)
def test_a_request_that_kills_engines_does_not_kill_them_all(failure: Outcome) -> None:
    assert RERUNS_MAX == 2
    assert walk(router(5, 1), *[failure] * 3, DONE) == ["p0", "p1", "p2", "d0!", "finished"]
    decodes = walk(router(1, 5), DONE, *[failure] * 3)
    assert decodes == ["p0", "d0<", "d1", "d2", "unserved(d0,d1,d2)?"]  # d0 may have fetched it, and then it was freed


@pytest.mark.parametrize("failure", RERUN)
def test_an_unrepeatable_request_is_sent_on_only_if_no_engine_saw_it(failure: Outcome) -> None:
    steps = walk(router(0, 4), Outcome.UNREACHABLE, Outcome.BUSY, failure, repeatable=False)
    assert steps == ["d0", "d1", "d2", "unserved(d0,d1,d2)?"]


def test_all_requests_share_a_budget_of_reruns() -> None:
    routes = router(0, 2)
    routes.budget._left = 2.0
    rerun = ["d0", "d1", "finished"]
    assert sorted(walk(routes, Outcome.BROKEN, DONE)) == rerun
    assert sorted(walk(routes, Outcome.BROKEN, DONE)) == rerun
    assert walk(routes, Outcome.BROKEN)[-1].startswith("unserved")
    assert walk(routes, Outcome.UNREACHABLE, DONE)[-1] == "finished"  # which costs nobody any work
    for _ in range(5):
        walk(routes, DONE)
    for engine in routes.fleet.engines(Role.DECODE):
        routes.fleet.probed(engine, Probe.OK)
    assert walk(routes, Outcome.BROKEN, DONE)[-1] == "finished"  # five requests earn one rerun
    for _ in range(20_000):
        routes.budget.earn()
    assert routes.budget._left == BUDGET_MAX


def test_the_turn_goes_on_behind_a_retry() -> None:
    routes = router(3, 1)
    assert walk(routes, Outcome.BUSY)[:2] == ["p0", "p1"]
    assert walk(routes)[0] == "p2"


def test_engines_may_come_and_go_meanwhile() -> None:
    routes = router(1, 1)
    route = Route(routes, Ask(), prefill=True, repeatable=True)
    assert said(route.first(0)) == "p0"
    routes.fleet.remove(Role.DECODE, Address("d0"))
    routes.fleet.add(Role.DECODE, Address("d1"))
    assert said(route.next(Role.PREFILL, DONE, 0)) == "d1<"
    routes.fleet.remove(Role.DECODE, Address("d1"))  # goes on
    assert route.next(Role.DECODE, DONE, 0) == Finished()


def test_a_pair_is_done_with_its_decode() -> None:
    assert walk(pushing(1, 1), DONE) == ["p0+d0", "finished"]
    routes = pushing(1, 1)
    route = Route(routes, Ask(), prefill=True, repeatable=True)
    route.first(0)
    route.prefilled()
    assert [engine.requests for role in Role for engine in routes.fleet.engines(role)] == [0, 1]
    assert route.next(Role.DECODE, DONE, 0) == Finished()
    routes.fleet.check()


def test_a_failed_leg_of_a_pair_makes_another_pair() -> None:
    routes = pushing(2, 2)
    assert walk(routes, (Role.PREFILL, Outcome.BROKEN), DONE) == ["p0+d0", "p1+d1", "finished"]
    steps = walk(pushing(1, 2), (Role.PREFILL, Outcome.UNREACHABLE), DONE)
    assert steps == ["p0+d0", "d1!", "finished"]
    steps = walk(pushing(1, 2), (Role.DECODE, Outcome.BROKEN), DONE)
    assert steps == ["p0+d0", "p0+d1", "finished"]
    steps = walk(pushing(1, 1), (Role.DECODE, Outcome.BROKEN))
    assert steps == ["p0+d0", "unserved(d0)"]


def test_a_pair_needs_the_prefill_engines_id() -> None:
    routes = router(2, 1, Handover.PUSH)
    assert walk(routes, DONE) == ["d0!", "finished"]
    routes.fleet.learned(routes.fleet.engines(Role.PREFILL)[1], Handover.PUSH, ("id",))
    assert walk(routes, DONE) == ["p1+d0", "finished"]


def test_how_each_prefill_engine_hands_over_is_found_out() -> None:
    routes = router(4, 1, None)
    _, store, pull, push = routes.fleet.engines(Role.PREFILL)
    routes.fleet.learned(store, Handover.STORE)
    routes.fleet.learned(pull, Handover.PULL)
    routes.fleet.learned(push, Handover.PUSH, ("id",))
    first = [Route(routes, Ask(), prefill=True, repeatable=True).first(0) for _ in range(4)]
    assert [decision.handover if isinstance(decision, Prefill) else "pair" for decision in first] == [
        None,
        None,  # asked again each time
        Handover.PULL,
        "pair",
    ]


def test_what_routes_tell_the_fleet() -> None:
    routes = router(0, 2)
    first, second = routes.fleet.engines(Role.DECODE)
    walk(routes, Outcome.UNREACHABLE)
    assert (first.health, second.health) == (Health.GONE, Health.UP)
    walk(routes, Outcome.UNCONNECTED)
    assert second.health is Health.SILENT
    routes.fleet.probed(first, Probe.OK)
    walk(routes, Outcome.DIED)
    assert first.health is Health.GONE
    for _ in range(FAILURES_MAX):
        route = Route(routes, Ask(), prefill=False, repeatable=True)
        route.first(0)
        route.answered()
        assert second.health is Health.UP
        second.failures = FAILURES_MAX - 1
        route.broke_off(0)
        route.close()
    assert second.open_until is not None


def test_a_route_without_a_leg_takes_no_outcome() -> None:
    route = Route(router(0, 1), Ask(), prefill=True, repeatable=True)
    route.first(0)
    assert route.next(Role.DECODE, DONE, 0) == Finished()
    with pytest.raises(KeyError):
        route.next(Role.DECODE, DONE, 0)


def legs_of(decision: Decision) -> list[str]:
    match decision:
        case Prefill(leg) | Decode(leg):
            return [str(leg.engine.address)]
        case Pair(prefill, decode):
            return [str(prefill.engine.address), str(decode.engine.address)]
    return []


@given(
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from(list(Handover)),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(Role), st.sampled_from(Outcome)), max_size=60),
)
def test_routes_that_interleave_all_end_and_never_ask_an_engine_twice(
    prefills: int, decodes: int, handover: Handover, repeatable: bool, schedule: list[tuple[int, Role, Outcome]]
) -> None:
    routes = pushing(prefills, decodes)
    routes.handover = handover
    taken: list[Route] = [Route(routes, Ask(7), prefill=True, repeatable=repeatable) for _ in range(3)]
    told: list[list[tuple[Decision, Role | None]]] = [[(route.first(0), None)] for route in taken]
    rest = itertools.cycle([(n, Role.PREFILL, Outcome.UNREACHABLE) for n in range(3)])
    for n, role, outcome in itertools.chain(schedule, itertools.islice(rest, 3 * (prefills + decodes + 1))):
        last = told[n][-1][0]
        if isinstance(last, Finished | Unserved):
            continue
        decided = role if isinstance(last, Pair) else role_of(last)
        if isinstance(last, Pair) and outcome is DONE:
            decided = Role.DECODE  # a pair is done when its decode is
        told[n].append((taken[n].next(decided, outcome, 0), decided))
        routes.fleet.check()
    for steps in told:
        assert isinstance(steps[-1][0], Finished | Unserved)
        asked: list[str] = []
        for (decision, _), (_, failed) in itertools.pairwise(steps):
            for leg in legs_of(decision):
                spared = isinstance(decision, Pair) and failed is not None and leg[0] != failed[0]
                if not spared:  # the leg of a pair that only failed with the other may be sent again
                    asked.append(leg)
        assert len(set(asked)) == len(asked)
        kinds = [leg[0] for leg in asked]
        assert handover is Handover.PUSH or kinds == sorted(kinds, reverse=True)  # never back to prefill
    for route in taken:
        route.close()
    for role in Role:
        assert all(engine.requests == engine.prompt_tokens == 0 for engine in routes.fleet.engines(role))
