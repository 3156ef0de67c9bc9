"""The policies by themselves: which engine each picks, and that what they remember is bounded."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core.engine import Address, Engine, Role
from services.proxy.core.scheduling import BOUND, POLICIES, Ask, Policy, RoundRobin, make_policy


def engines(*loads: int, role: Role = Role.DECODE) -> list[Engine]:
    return [Engine(role, Address(f"e{n}"), requests=load, prompt_tokens=10 * load) for n, load in enumerate(loads)]


def policy(name: str) -> Policy:
    return make_policy(name, Random(1))


def names(chosen: list[Engine]) -> list[str]:
    return [engine.address for engine in chosen]


def test_every_policy_on_offer_can_be_made() -> None:
    for name in POLICIES:
        assert policy(name)(engines(3), Ask()).address == "e0"
    with pytest.raises(KeyError):
        policy("magic")


def test_round_robin_continues_where_it_was_although_engines_come_and_go() -> None:
    choose, three = RoundRobin(), engines(0, 0, 0)
    assert names([choose(three, Ask()) for _ in range(5)]) == ["e0", "e1", "e2", "e0", "e1"]
    assert names([choose(three[:2], Ask()) for _ in range(2)]) == ["e0", "e1"]
    assert choose(three, Ask()).address == "e2"
    new = Engine(Role.DECODE, Address("new"))
    assert choose([*three, new], Ask()) is new
    for n in range(1_000):
        choose([Engine(Role.DECODE, Address(f"passing{n}"))], Ask())
    assert len(choose._asked) <= 2 * 1 + 64 + 1


def test_least_loaded_counts_tokens_of_prefill_and_requests_of_decode() -> None:
    choose = policy("least_loaded")
    prefills = engines(0, 0, 0, role=Role.PREFILL)
    for engine, (requests, tokens) in zip(prefills, [(1, 900), (9, 90), (2, 100)], strict=True):
        engine.requests, engine.prompt_tokens = requests, tokens
    assert choose(prefills, Ask()).address == "e1"
    assert choose(engines(3, 1, 2), Ask()).address == "e1"


def test_least_loaded_lets_equals_take_turns() -> None:
    choose = policy("least_loaded")
    assert names([choose(engines(0, 5, 0), Ask()) for _ in range(4)]) == ["e0", "e2", "e0", "e2"]


def test_power_of_two_never_picks_the_most_loaded_and_spreads_over_the_rest() -> None:
    choose, four = policy("power_of_two"), engines(1, 2, 3, 9)
    taken = Counter(choose(four, Ask()).address for _ in range(600))
    assert set(taken) == {"e0", "e1", "e2"}
    assert taken["e0"] > taken["e1"] > taken["e2"] > 50
    assert choose(engines(4, 2), Ask()).address == "e1"


def test_prefix_affinity_keeps_a_prefix_with_its_engine_and_moves_few_when_one_goes() -> None:
    choose, four = policy("prefix_affinity"), engines(0, 0, 0, 0)
    homes = {prefix: choose(four, Ask(1, prefix)) for prefix in range(400)}
    assert {prefix: choose(four[::-1], Ask(1, prefix)) for prefix in range(400)} == homes
    counts = Counter(engine.address for engine in homes.values())
    assert min(counts.values()) > 60
    left = [engine for engine in four if engine.address != "e1"]
    for prefix, home in homes.items():
        if home.address != "e1":
            assert choose(left, Ask(1, prefix)) is home


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60), st.integers(1, 6), st.sampled_from(list(Role)))
def test_prefix_affinity_loads_none_far_over_the_mean(prefixes: list[int], count: int, role: Role) -> None:
    """Whatever the prefixes, even if all are the same."""
    choose, fleet = policy("prefix_affinity"), engines(*[0] * count, role=role)
    for prefix in prefixes:
        chosen = choose(fleet, Ask(10, prefix))
        before = chosen.load
        chosen.requests += 1
        chosen.prompt_tokens += 10
        assert before <= BOUND * sum(engine.load for engine in fleet) / count


def test_a_session_stays_whatever_its_load_and_without_one_the_least_loaded_serves() -> None:
    choose = policy("session")
    home = choose(engines(0, 0, 0), Ask(session="s-1"))
    loaded = engines(*(100 if f"e{n}" == home.address else 0 for n in range(3)))
    assert choose(loaded, Ask(session="s-1")).address == home.address
    assert len({choose(engines(0, 0, 0), Ask(session=f"s-{n}")).address for n in range(50)}) == 3
    assert choose(engines(1, 0, 1), Ask()).address == "e1"
    choose(engines(0, 0), Ask(session="caf\udce9"))  # as a header may be
