"""The order in which objects leave a segment, without a master around it: one that holds so many of one size."""

import random

import pytest

from services.master.core import eviction
from services.master.core.eviction import GENERATIONS, HELD_SKIPPED_MAX, SAMPLE_MIN, Residents, Traffic
from services.master.core.objects import Object


class Pool:
    """Room for so many objects; what was used once more is found, or put after the first victims went."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.objects: dict[bytes, Object] = {}
        self.traffic = Traffic(self.objects)
        self.residents = Residents(self.traffic)
        self.gone: list[int] = []
        self.held: set[bytes] = set()
        self.hits = 0

    def use(self, *names: int) -> None:
        for name in names:
            obj = self.objects.get(b"%d" % name)
            if obj is not None:
                obj.used = self.traffic.use()
                self.hits += 1
            else:
                self.put(name)

    def put(self, name: int) -> None:
        if len(self.objects) == self.capacity:
            self.evict(1)
        obj = Object(b"%d" % name, 1, 1, 0, [], 0, 1)
        returns = self.traffic.put(obj)
        self.objects[obj.key] = obj
        self.residents.add(obj, returns)

    def evict(self, count: int) -> list[int]:
        victims, _ = self.residents.victims(
            count, count_max=count, size_of=lambda obj: obj.size, held=lambda obj: obj.key in self.held
        )
        for obj in victims:
            del self.objects[obj.key]
        names = [int(obj.key) for obj in victims]
        self.gone += names
        return names

    def returns(self, name: int) -> int | None:
        return self.residents.returns(self.objects[b"%d" % name])

    def remembered(self) -> int:
        return sum(len(ghosts.returns) for ghosts in self.traffic._ghosts)


def lru_hits(capacity: int, uses: list[int]) -> int:
    cache: dict[int, None] = {}
    hits = 0
    for name in uses:
        hits += name in cache
        cache.pop(name, None)
        if len(cache) == capacity:
            del cache[next(iter(cache))]
        cache[name] = None
    return hits


def test_what_is_used_once_leaves_in_the_order_it_came() -> None:
    pool = Pool(100)
    pool.use(*range(250))
    assert pool.gone == list(range(150))


def test_what_was_used_again_stays_longer_than_by_recency_and_goes_once_unwanted() -> None:
    pool = Pool(100)
    pool.use(*range(1000, 1100))
    for round_ in range(12):  # 0 to 9 come back after 60 uses, which is what the bonus becomes
        pool.use(*range(10), *range(2000 + 50 * round_, 2050 + 50 * round_))
    assert all((pool.returns(name) or 0) >= 3 for name in range(10))
    assert 60 <= pool.traffic.bonus <= 120
    pool.use(*range(5000, 5200))
    assert set(range(10)).isdisjoint(pool.gone), "used 200 uses ago: plain recency would have let it go"
    pool.use(*range(6000, 7000))
    assert set(range(10)) <= set(pool.gone)


def test_a_handover_right_after_the_put_is_not_a_return() -> None:
    pool = Pool(100)
    for name in range(300):
        pool.use(name, name)
    assert pool.gone == list(range(200))
    assert len(pool.residents._rows[0]) == 100


def test_an_evicted_object_is_remembered_when_it_is_put_again() -> None:
    pool = Pool(100)
    pool.use(*range(150))
    pool.use(0)
    assert pool.returns(0) == 1
    pool.use(1000)
    assert pool.returns(1000) == 0


def test_what_is_remembered_of_evicted_objects_is_bounded_by_the_objects_there_are() -> None:
    pool = Pool(500)
    pool.use(*range(20_000))
    assert GENERATIONS * 500 // 2 - 500 <= pool.remembered() <= GENERATIONS * 500 // 2
    pool.use(10, 19_400)
    assert (pool.returns(10), pool.returns(19_400)) == (0, 1), "what left first is forgotten first"


@pytest.mark.parametrize("held", [10, HELD_SKIPPED_MAX - 1])
def test_held_objects_are_passed_over_and_keep_their_place(held: int) -> None:
    pool = Pool(200)
    pool.use(*range(200))
    pool.held = {b"%d" % name for name in range(held)}
    assert pool.evict(2) == [held, held + 1]
    assert len(pool.residents) == 198
    pool.held = set()
    assert pool.evict(held + 1) == [*range(held), held + 2]


def test_many_held_objects_get_out_of_the_way_of_others() -> None:
    pool = Pool(200)
    pool.use(*range(200))
    pool.held = {b"%d" % name for name in range(150)}
    assert pool.evict(1) == []  # one look is short
    assert pool.evict(1) == []
    assert pool.evict(1) == [150]
    assert len(pool.residents) == 199
    pool.held = {obj.key for obj in pool.residents}
    assert [pool.evict(1) for _ in range(10)] == [[]] * 10
    assert len(pool.residents) == 199


def test_a_scan_does_not_drive_out_what_comes_back() -> None:
    rng = random.Random(1)
    uses = []
    for number in range(4_000):
        uses += [rng.randrange(60), 1_000 + 2 * number, 1_001 + 2 * number]
    pool = Pool(120)
    pool.use(*uses)
    assert pool.hits > 1.2 * lru_hits(120, uses)


def test_it_is_plain_recency_where_recency_is_right() -> None:
    """Each object is used four times soon, then never again: there is nothing to gain by keeping it."""
    rng = random.Random(2)
    live: list[int] = []
    uses = []
    for name in range(12_000):
        live = [*live[-300:], name]
        uses.append(name)
        uses += [rng.choice(live) for _ in range(3)]
    pool = Pool(400)
    pool.use(*uses)
    assert pool.traffic.bonus == 0
    assert pool.hits > 0.97 * lru_hits(400, uses)


def test_every_look_at_an_object_is_paid_for_by_a_use(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    looks = 0
    look = Residents._next_row

    def counted(residents: Residents) -> int | None:
        nonlocal looks
        looks += 1
        return look(residents)

    monkeypatch.setattr(Residents, "_next_row", counted)
    pool = Pool(300)
    uses = [int(rng.paretovariate(0.7)) for _ in range(20_000)]
    pool.use(*uses)
    assert pool.hits > 5_000
    assert len(pool.gone) < looks <= len(uses)


def test_the_looks_of_one_step_are_bounded_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "LOOKS_MAX", 50)
    pool = Pool(200)
    pool.use(*range(200), *range(120))
    calls = [pool.residents.victims(1, count_max=1, size_of=lambda obj: 1, held=lambda obj: False) for _ in range(3)]
    assert [([obj.key for obj in victims], more) for victims, more in calls] == [
        ([], True),
        ([], True),
        ([b"120"], False),
    ]


def test_the_least_sample_keeps_a_small_pool_sane() -> None:
    pool = Pool(1)
    for _ in range(3):
        pool.use(*range(5 * SAMPLE_MIN))
    assert len(pool.residents) == 1
    assert 0 <= pool.traffic.bonus < 100 * SAMPLE_MIN
