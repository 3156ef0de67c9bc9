"""The fleet by itself: which engines are offered, how legs, probes and operators change that, and the breaker."""

from typing import Any

import pytest

from services.proxy.core.engine import OPEN_S, Address, Booking, Breaker, Change, Engine, Handover, Health, Probe, Role
from services.proxy.core.fleet import FAILURES_MAX, OPEN_S_MAX, SILENT_PROBES, Fleet

A, B = Address("a:1"), Address("b:1")


@pytest.fixture
def changes() -> list[tuple[str, Change]]:
    return []


@pytest.fixture
def fleet(changes: Any) -> Fleet:
    """Two engines of each role."""
    made = Fleet(lambda engine, change: changes.append((engine.address, change)))
    for role in Role:
        for address in (A, B):
            assert made.add(role, address)
    return made


def of(fleet: Fleet, role: Role, address: Address = A) -> Engine:
    engine = fleet.get(role, address)
    assert engine is not None
    return engine


def offered(fleet: Fleet, role: Role = Role.DECODE, now: float = 0.0, tried: tuple[Address, ...] = ()) -> list[str]:
    return [engine.address for engine in fleet.candidates(role, now, frozenset(tried))]


def fail(fleet: Fleet, engine: Engine, now: float, times: int = 1) -> None:
    for _ in range(times):
        booking = fleet.book(engine, 1, now)
        fleet.failed(booking, now)
        fleet.ended(booking)
        fleet.check()


@pytest.mark.parametrize("role", Role)
def test_an_engine_that_has_not_answered_its_probe_is_asked_after_the_others(fleet: Fleet, role: Role) -> None:
    fleet.probed(of(fleet, role), Probe.NO_ANSWER)
    assert offered(fleet, role) == [B]
    fleet.probed(of(fleet, role, B), Probe.NO_ANSWER)
    assert offered(fleet, role) == [A, B]
    fleet.probed(of(fleet, role), Probe.OK)
    assert offered(fleet, role) == [A]


def answer(fleet: Fleet, engine: Engine, now: float) -> Booking:
    booking = fleet.book(engine, 1, now)
    fleet.answered(booking)
    fleet.ended(booking)
    fleet.check()
    return booking


def test_roles_are_separate_and_an_engine_is_there_once(fleet: Fleet) -> None:
    assert not fleet.add(Role.DECODE, A)
    fleet.remove(Role.DECODE, A)
    assert [engine.address for engine in fleet.engines(Role.DECODE)] == [B]
    assert [engine.address for engine in fleet.engines(Role.PREFILL)] == [A, B]
    assert fleet.remove(Role.DECODE, A) is None


def test_a_drained_engine_is_not_offered_until_it_is_added_again(fleet: Fleet) -> None:
    booking = fleet.book(of(fleet, Role.DECODE), 5, 0)
    fleet.drain(Role.DECODE, A)
    assert offered(fleet) == [B]
    assert of(fleet, Role.DECODE).requests == 1  # its request goes on
    assert fleet.add(Role.DECODE, A)
    assert offered(fleet) == [A, B]
    fleet.ended(booking)
    assert fleet.drain(Role.DECODE, Address("c:1")) is None


def test_load_counts_tokens_of_prefills_and_requests_of_decodes(fleet: Fleet) -> None:
    bookings = [fleet.book(of(fleet, role), 30, 0) for role in Role for _ in range(2)]
    assert (of(fleet, Role.PREFILL).load, of(fleet, Role.DECODE).load) == (60, 2)
    for booking in bookings:
        fleet.ended(booking)
    assert (of(fleet, Role.PREFILL).load, of(fleet, Role.DECODE).load) == (0, 0)
    with pytest.raises(AssertionError, match="ends once"):
        fleet.ended(bookings[0])


def test_the_breaker_opens_doubles_and_closes(fleet: Fleet, changes: Any) -> None:
    engine = of(fleet, Role.DECODE)
    fail(fleet, engine, 10, FAILURES_MAX - 1)
    answer(fleet, engine, 10)  # in a row only
    fail(fleet, engine, 10, FAILURES_MAX - 1)
    assert engine.breaker(10) is Breaker.CLOSED
    fail(fleet, engine, 10)
    assert engine.breaker(10) is Breaker.OPEN
    assert offered(fleet, now=10) == [B]
    now, open_s = 10.0, OPEN_S
    for _ in range(8):
        now += open_s
        assert engine.breaker(now) is Breaker.HALF_OPEN
        assert offered(fleet, now=now) == [A, B]
        fail(fleet, engine, now)
        assert engine.breaker(now) is Breaker.OPEN
        open_s = min(2 * open_s, OPEN_S_MAX)
        assert engine.breaker(now + open_s - 0.01) is Breaker.OPEN
    now += open_s
    answer(fleet, engine, now)
    assert engine.breaker(now) is Breaker.CLOSED
    assert [change for _, change in changes] == [Change.OPENED] * 9 + [Change.CLOSED]
    fail(fleet, engine, now, FAILURES_MAX)
    assert engine.breaker(now + OPEN_S) is Breaker.HALF_OPEN  # it starts over the next time


def test_half_open_lets_one_leg_try(fleet: Fleet) -> None:
    engine = of(fleet, Role.DECODE)
    early = fleet.book(engine, 1, 0)
    fail(fleet, engine, 0, FAILURES_MAX)
    trial = fleet.book(engine, 1, OPEN_S)
    assert offered(fleet, now=OPEN_S) == [B]
    assert offered(fleet, now=OPEN_S, tried=(B,)) == [A]  # better than none
    other = fleet.book(engine, 1, OPEN_S)
    for booking in (early, other):  # sent before, or for lack of a better engine: they tell nothing new
        fleet.failed(booking, OPEN_S)
        fleet.ended(booking)
    assert engine.breaker(OPEN_S) is Breaker.HALF_OPEN
    fleet.ended(trial)  # given up by its client: nothing new is known
    assert offered(fleet, now=OPEN_S) == [A, B]
    fleet.check()


def test_a_prefill_engine_that_is_not_well_is_not_asked_at_all(fleet: Fleet) -> None:
    fail(fleet, of(fleet, Role.PREFILL), 0, FAILURES_MAX)
    assert offered(fleet, Role.PREFILL, tried=(B,)) == []
    assert offered(fleet, Role.PREFILL, now=OPEN_S, tried=(B,)) == [A]
    trial = fleet.book(of(fleet, Role.PREFILL), 1, OPEN_S)
    assert offered(fleet, Role.PREFILL, now=OPEN_S, tried=(B,)) == []
    fleet.ended(trial)
    for _ in range(SILENT_PROBES):
        fleet.probed(of(fleet, Role.PREFILL, B), Probe.NO_ANSWER)
    assert offered(fleet, Role.PREFILL, tried=(A,)) == []


def test_decode_engines_are_asked_in_order_of_their_health(fleet: Fleet) -> None:
    a, b = of(fleet, Role.DECODE), of(fleet, Role.DECODE, B)
    for _ in range(SILENT_PROBES):
        fleet.probed(a, Probe.NO_ANSWER)
    fail(fleet, b, 0, FAILURES_MAX)
    assert offered(fleet) == [B]
    assert offered(fleet, tried=(B,)) == [A]
    assert fleet.serves(Role.DECODE, 0)
    fleet.probed(b, Probe.REFUSED)
    assert offered(fleet) == [A]
    assert not fleet.serves(Role.DECODE, 0)
    fleet.probed(a, Probe.REFUSED)
    assert offered(fleet) == []


def test_one_unanswered_probe_is_not_silence(fleet: Fleet, changes: Any) -> None:
    engine = of(fleet, Role.DECODE)
    for probe in [Probe.NO_ANSWER, Probe.OK] * 3:
        fleet.probed(engine, probe)
    fleet.probed(engine, Probe.NO_ANSWER)
    answer(fleet, engine, 0)  # so does a leg's answer
    fleet.probed(engine, Probe.NO_ANSWER)
    assert engine.health is Health.UP
    fleet.probed(engine, Probe.NO_ANSWER)
    assert engine.health is Health.SILENT
    fleet.probed(engine, Probe.OK)
    assert changes == [(A, Change.LOST), (A, Change.BACK)]


@pytest.mark.parametrize("refused", [True, False])
def test_an_engine_that_refuses_connections_is_lost_with_the_first_leg(
    fleet: Fleet, changes: Any, refused: bool
) -> None:
    engine = of(fleet, Role.DECODE)
    for _ in range(2):
        booking = fleet.book(engine, 1, 0)
        fleet.unreachable(booking, refused=refused)
        fleet.ended(booking)
    assert engine.health is (Health.GONE if refused else Health.SILENT)
    assert changes == [(A, Change.LOST)]
    fleet.probed(engine, Probe.OK)
    assert offered(fleet) == [A, B]


@pytest.mark.parametrize("refused", [True, False])
def test_an_answer_to_an_earlier_leg_does_not_mean_that_an_engine_accepts_connections_again(
    fleet: Fleet, refused: bool
) -> None:
    engine = of(fleet, Role.DECODE)
    before, other = fleet.book(engine, 1, 0), fleet.book(engine, 1, 0)
    fleet.unreachable(other, refused=refused)
    lost = engine.health
    fleet.answered(before)
    assert engine.health is lost is not Health.UP
    if not refused:
        fleet.answered(fleet.book(engine, 1, 0))  # what was sent since does
        assert engine.health is Health.UP
    for _ in range(SILENT_PROBES):
        fleet.probed(engine, Probe.OK if refused else Probe.NO_ANSWER)
    fleet.answered(before)  # and so it is not frozen
    assert engine.health is Health.UP


def test_what_shows_that_an_engine_is_frozen(fleet: Fleet) -> None:
    """Silence on an accepted connection, within two or more unanswered probes in a row; reported once."""
    engine = of(fleet, Role.DECODE)
    silent, nothing = Probe.NO_ANSWER, Probe.NO_CONNECTION
    for probes, shown in (
        ([silent, silent, silent], [False, True, False]),
        ([nothing, nothing, nothing], [False, False, False]),
        ([nothing, nothing, silent, nothing], [False, False, True, False]),
        ([silent, nothing], [False, True]),
        ([silent, Probe.OK, silent], [False, False, False]),
        ([Probe.REFUSED, silent, silent], [False, False, False]),
    ):
        fleet.probed(engine, Probe.OK)
        assert [fleet.probed(engine, probe) for probe in probes] == shown


def test_an_engine_that_comes_back_counts_as_a_new_one(fleet: Fleet) -> None:
    engine = of(fleet, Role.PREFILL)
    fleet.learned(engine, Handover.PUSH, ("id",))
    fail(fleet, engine, 0, FAILURES_MAX)
    fail(fleet, engine, OPEN_S)
    fleet.probed(engine, Probe.REFUSED)
    assert (engine.handover, engine.transfer_ids) == (None, ())
    fleet.probed(engine, Probe.OK)
    assert offered(fleet, Role.PREFILL, now=OPEN_S) == [A, B]
    assert engine.breaker(OPEN_S) is Breaker.CLOSED


def test_an_answer_without_params_overrides_nothing(fleet: Fleet) -> None:
    engine = of(fleet, Role.PREFILL)
    fleet.learned(engine, Handover.STORE)
    assert engine.handover is Handover.STORE
    fleet.learned(engine, Handover.PULL)
    fleet.learned(engine, Handover.STORE)
    assert engine.handover is Handover.PULL
    fleet.learned(engine, Handover.PUSH, ("id",))
    fleet.learned(engine, Handover.STORE)
    assert (engine.handover, engine.transfer_ids) == (Handover.PUSH, ("id",))
