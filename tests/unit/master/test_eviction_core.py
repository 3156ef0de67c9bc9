"""Eviction by the whole core: chains, restarts, repairs, and a trace on which it has to beat plain recency."""

import random

from services.master.core import messages as m
from services.master.core.messages import Result
from services.master.replay.policies import Larder, Lru
from tests.unit.master.transcript import CONFIG, KIB, Cluster


def put_chain(cluster: Cluster, name: bytes, count: int) -> list[bytes]:
    """A prompt's blocks of 1 KiB, put in one batch, root first."""
    keys = [name + b"%d" % depth for depth in range(count)]
    call = cluster.call()
    cluster.step(m.PutStart(call, call.to_bytes(16), keys, [KIB] * count, 1, range(count)))
    started = cluster.answers[call]
    assert isinstance(started, m.PutStarted)
    assert started.results == [Result.OK] * count
    cluster.end(started)
    return keys


def fill(cluster: Cluster, count: int) -> None:
    for _ in range(count):
        cluster.put(b"filler%d" % cluster.call(), KIB)


def matched(cluster: Cluster, keys: list[bytes]) -> int:
    answer = cluster.answers[cluster.match(keys)]
    assert isinstance(answer, m.Matched)
    return answer.matched


def test_leaves_go_before_their_root() -> None:
    cluster = Cluster(nodes=1)
    keys = put_chain(cluster, b"a", 8)
    fill(cluster, 10)
    assert [cluster.found(key) for key in keys] == [True] * 5 + [False] * 3


def test_after_a_restart_the_oldest_goes_first_and_leaves_before_their_root() -> None:
    cluster = Cluster(nodes=1)
    chains = put_chain(cluster, b"a", 4), put_chain(cluster, b"b", 4)
    records = [copy for effect in cluster.sent if isinstance(effect, m.Record) for copy in effect.copies]
    again = Cluster(nodes=0)
    again.infos = cluster.infos
    again.attach(0, held=tuple(copy._replace(offset=15 * KIB - copy.offset) for copy in records))
    again.pass_time(CONFIG.lease_ms + CONFIG.write_ttl_ms + CONFIG.late_write_ms + 50)
    assert [matched(again, keys) for keys in chains] == [4, 4]
    fill(again, 10)
    assert [matched(again, keys) for keys in chains] == [1, 4]


def test_a_copy_made_by_repair_counts_for_what_the_object_does() -> None:
    cluster = Cluster(nodes=2)
    cluster.put(b"k", KIB)
    obj = cluster.core.state.objects[b"k"]
    home, other = sorted(cluster.core.state.segments.values(), key=lambda segment: obj not in segment.residents)
    home.residents.discard(obj)
    home.residents.add(obj, 3)
    cluster.core.catalogue.house(obj, other)
    assert other.residents.returns(obj) == 3


def test_putting_what_exists_is_a_use() -> None:
    cluster = Cluster(nodes=1)
    for i in range(8):
        cluster.put(b"k%d" % i, KIB)
    fill(cluster, 7)
    started = cluster.start(b"k0", KIB)
    assert started is not None
    assert started.results == [Result.EXISTS]
    fill(cluster, 4)
    assert [cluster.found(b"k%d" % i) for i in range(4)] == [True, False, False, False]


def test_it_beats_plain_recency_on_conversations_among_prompts_that_never_return() -> None:
    rng = random.Random(7)
    blocks = iter(range(1 << 20))
    conversations = [[next(blocks) for _ in range(6)] for _ in range(60)]
    requests = []
    for _ in range(1_000):
        chosen = rng.randrange(60)
        if rng.random() < 0.02:
            conversations[chosen] = [next(blocks) for _ in range(6)]  # it ended, another begins
        elif rng.random() < 0.2:
            conversations[chosen].append(next(blocks))
        requests += [list(conversations[chosen]), [next(blocks) for _ in range(8)]]
    ours, plain = (sum(map(policy.request, requests)) for policy in (Larder(400), Lru(400)))
    assert ours > 1.2 * plain
