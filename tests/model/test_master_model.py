"""Every interleaving Hypothesis can think of, on the real core; invariants are derived anew after every step."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from services.master.core.allocator import Allocator
from services.master.core.claims import Claims
from services.master.core.cluster import Node, Quarantined
from services.master.core.expiry import Expiry
from services.master.core.extents import Extents
from services.master.core.repair import Repair
from services.master.core.surplus import Surplus
from services.master.core.tables import State
from tests.model.machine import MasterMachine, WithDoubles
from tests.model.world import World

SETTINGS = settings(
    max_examples=400,
    stateful_step_count=60,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
MUTANT_SETTINGS = settings(SETTINGS, max_examples=4000, database=None, derandomize=True, phases=[Phase.generate])


@pytest.mark.timeout(300)
def test_the_core_keeps_its_invariants() -> None:
    run_state_machine_as_test(WithDoubles, settings=SETTINGS)


def skip_quarantine(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Extents.quarantine

    def quarantine(self: Extents, *args: object, **kwargs: object) -> object:
        return original(self, *args, **{**kwargs, "not_before": 0})  # type: ignore[arg-type]

    monkeypatch.setattr(Extents, "quarantine", quarantine)


def never_look_for_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Extents._tell

    def tell(self: Extents, node: Node, entries: list[Quarantined], strays: list[Any], lengths: list[int]) -> None:
        original(self, node, entries, strays, [])

    monkeypatch.setattr(Extents, "_tell", tell)


def overlap_extents(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Allocator.free

    def free(self: Allocator, offset: int, length: int) -> None:
        original(self, offset, length + 256)

    monkeypatch.setattr(Allocator, "free", free)


def offer_the_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "readable", lambda self, obj: True)


def forget_to_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Extents, "flush_forgets", lambda self: None)


def never_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Repair, "want", lambda self, obj: None)


def drop_before_the_copy_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "staying_copies", State.live_copies)


def never_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Expiry, "next_ms", lambda self: None)


def keep_surplus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Surplus, "trim", lambda self, obj: None)


MUTANTS = {
    never_repair: True,
    keep_surplus: False,
    drop_before_the_copy_is_made: False,
    never_expire: True,
    skip_quarantine: True,
    overlap_extents: True,
    offer_the_dead: True,
    forget_to_forget: True,
}
"""Whether seed 1 shows it: within seconds, where the examples that `derandomize` chooses take up to a minute."""


@pytest.mark.parametrize("mutate", MUTANTS)
def test_the_model_catches(mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each property has a mutant that breaks it; a model that does not notice it is decoration."""
    mutate(monkeypatch)

    class Machine(MasterMachine):
        """A seed stays with its class."""

    with pytest.raises((AssertionError, KeyError, ValueError)):
        run_state_machine_as_test(seed(1)(Machine) if MUTANTS[mutate] else MasterMachine, settings=MUTANT_SETTINGS)


def test_the_model_catches_who_trusts_a_node_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Claims, "is_over", lambda self, node: True)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(WithDoubles, settings=MUTANT_SETTINGS)


def stop_a_client_in_its_write() -> None:
    """Too long a story to wait until it is drawn: a client wakes when its space may be another's."""
    world = World(nodes=1, capacity=1024)
    world.attach(world.nodes["n0"])
    world.heal()
    world.start([b"a"], [1024], 1)
    world.stop_at(world.puts.pop(), 0, 0)
    world.run(3000)
    world.start([b"b"], [1024], 1)
    for put in world.puts:
        world.write(put, 0, 0)
        world.end(put)
    world.heal()
    world.wake(0)
    world.run(1000)
    assert not world.puts, "space was given away where a client may still write"
    world.start([b"b"], [1024], 1)
    assert world.puts, "space of a stopped client never came back"


def test_a_client_that_is_stopped_in_its_write_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_a_client_in_its_write()
    never_look_for_writers(monkeypatch)
    with pytest.raises(AssertionError, match=r"^b'b' at "):
        stop_a_client_in_its_write()
