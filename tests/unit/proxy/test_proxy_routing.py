"""The routing table alone: turns, what follows on each outcome, and that every route ends."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core.routing import (
    Address,
    Decision,
    Decode,
    Finished,
    Outcome,
    Prefill,
    Role,
    RoutingTable,
    Unserved,
)

FAILURES = [Outcome.UNREACHABLE, Outcome.BROKEN, Outcome.TIMED_OUT]


def table(prefills: int, decodes: int) -> RoutingTable:
    return RoutingTable(
        tuple(Address(f"p{n}") for n in range(prefills)), tuple(Address(f"d{n}") for n in range(decodes))
    )


def walk(routes: RoutingTable, *outcomes: Outcome, prefill: bool = True, repeatable: bool = True) -> list[Decision]:
    route = routes.begin(prefill=prefill, repeatable=repeatable)
    return [route.step(), *(route.step(outcome) for outcome in outcomes)]


def p(n: int) -> Prefill:
    return Prefill(Address(f"p{n}"))


def d(n: int, *, alone: bool = False) -> Decode:
    return Decode(Address(f"d{n}"), alone)


def test_each_role_takes_turns_of_its_own() -> None:
    routes = table(2, 3)
    walks = [walk(routes, Outcome.DONE, Outcome.DONE) for _ in range(6)]
    assert walks == [[p(n % 2), d(n % 3), Finished()] for n in range(6)]


def test_a_request_without_a_prefill_leg_goes_straight_to_decode() -> None:
    assert walk(table(2, 1), Outcome.DONE, prefill=False) == [d(0), Finished()]


def test_without_decode_engines_nothing_is_prefilled() -> None:
    assert walk(table(2, 0)) == [Unserved((), may_have_run=False)]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_prefill_is_given_to_every_other_once_then_decoded_alone(failure: Outcome) -> None:
    assert walk(table(3, 1), failure, Outcome.DONE) == [p(0), p(1), d(0)]
    assert walk(table(3, 1), *[failure] * 3, Outcome.DONE) == [p(0), p(1), p(2), d(0, alone=True), Finished()]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_decode_is_given_to_every_other_once(failure: Outcome) -> None:
    routes = table(1, 3)
    assert walk(routes, Outcome.DONE, failure, failure, Outcome.DONE) == [p(0), d(0), d(1), d(2), Finished()]
    assert walk(routes, Outcome.DONE, *[failure] * 3)[-1] == Unserved(("d0", "d1", "d2"), may_have_run=False)


@pytest.mark.parametrize("failure", [Outcome.BROKEN, Outcome.TIMED_OUT])
def test_what_must_not_run_twice_is_sent_on_only_if_it_was_never_received(failure: Outcome) -> None:
    steps = walk(table(0, 3), Outcome.UNREACHABLE, failure, prefill=False, repeatable=False)
    assert steps == [d(0), d(1), Unserved(("d0", "d1"), may_have_run=True)]


def test_the_turn_goes_on_behind_a_retry() -> None:
    routes = table(3, 1)
    assert walk(routes, Outcome.UNREACHABLE)[:2] == [p(0), p(1)]
    assert walk(routes)[0] == p(2)


def test_an_engine_added_under_way_is_used_and_a_known_one_is_not_added_twice() -> None:
    routes = table(0, 1)
    route = routes.begin(prefill=False, repeatable=True)
    assert route.step() == d(0)
    assert routes.add(Role.DECODE, Address("d1"))
    assert not routes.add(Role.DECODE, Address("d1"))
    assert routes.engines(Role.DECODE) == ("d0", "d1")
    assert routes.add(Role.PREFILL, Address("d1"))  # one engine may have both roles
    assert route.step(Outcome.BROKEN) == d(1)


def test_a_route_is_asked_in_order() -> None:
    route = table(1, 1).begin(prefill=True, repeatable=True)
    with pytest.raises(AssertionError, match="answers a decision"):
        route.step(Outcome.DONE)
    route.step()
    with pytest.raises(AssertionError, match="answers a decision"):
        route.step()
    route.step(Outcome.DONE)
    route.step(Outcome.DONE)
    with pytest.raises(AssertionError, match="has ended"):
        route.step(Outcome.DONE)


@given(
    st.integers(0, 4),
    st.integers(0, 4),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(Outcome)), max_size=60),
)
def test_routes_that_interleave_all_end_and_never_ask_an_engine_twice(
    prefills: int, decodes: int, repeatable: bool, schedule: list[tuple[int, Outcome]]
) -> None:
    routes = table(prefills, decodes)
    open_routes = [routes.begin(prefill=True, repeatable=repeatable) for _ in range(3)]
    said: list[list[Decision]] = [[route.step()] for route in open_routes]
    done = itertools.cycle([(n, Outcome.UNREACHABLE) for n in range(3)])
    for n, outcome in itertools.chain(schedule, itertools.islice(done, 3 * (prefills + decodes + 1))):
        if not isinstance(said[n][-1], Finished | Unserved):
            said[n].append(open_routes[n].step(outcome))
            routes.check()
    for decisions in said:
        assert isinstance(decisions[-1], Finished | Unserved)
        legs = [(type(step), step.to) for step in decisions if isinstance(step, Prefill | Decode)]
        assert len(set(legs)) == len(legs)
        kinds = [kind for kind, _ in legs]
        assert kinds == sorted(kinds, key=[Prefill, Decode].index)  # never back to prefill
