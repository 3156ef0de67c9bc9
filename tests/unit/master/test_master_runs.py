"""Match over what was put in one call: the answer is that of looking every key up."""

from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.master.core import messages as m
from services.master.core.check import check
from services.master.core.objects import Object
from services.master.core.packed import PackedKeys
from services.master.core.runs import RUN_MAX, leading, link, unlink
from tests.unit.master.transcript import KIB, Cluster

NAMES = [b"a", b"b", b"c", b"d", b"ab", b"cd", b"bc", b"da"]  # of two lengths, which look alike end to end


@settings(max_examples=300)
@given(st.data())
def test_the_answer_is_that_of_looking_every_key_up(data: st.DataObject) -> None:
    objects: dict[bytes, Object] = {}
    names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=8)
    for _ in range(data.draw(st.integers(1, 12))):
        some = data.draw(names)
        if data.draw(st.booleans()):
            new = [Object(name, 1, ord(name[:1]), 0, [], 0, 1) for name in dict.fromkeys(some) if name not in objects]
            objects.update({obj.key: obj for obj in new})
            link(new)
        else:
            for name in some:
                if name in objects:
                    unlink(objects.pop(name))
        asked = data.draw(names)
        lengths = set(map(len, asked))
        start = data.draw(st.integers(0, len(list(takewhile(objects.__contains__, asked)))))
        keys = PackedKeys(b"".join(asked), lengths.pop()) if len(lengths) == 1 else asked
        there = list(takewhile(objects.__contains__, asked))
        assert leading(objects, keys, start) == (len(there), sum(objects[name].size for name in there[start:]))
        runs = {obj.run for obj in objects.values() if obj.run is not None}
        assert sum(len(run.keys) for run in runs) <= 2 * sum(map(len, objects))


def test_packed_keys_are_those_that_were_packed() -> None:
    names = [b"ab", b"cd", b"ef"]
    packed = PackedKeys(b"".join(names), 2)
    assert list(packed) == names
    assert (len(packed), packed[0], packed[-1], packed[1:]) == (3, b"ab", b"ef", names[1:])
    assert packed.joined(1, 3) == b"cdef"
    assert repr(packed) == "PackedKeys(b'abcdef', 2)"  # as commands stand in traces, which must not differ
    with pytest.raises(IndexError):
        packed[3]
    for data, width in [(b"abc", 2), (b"abc", 0)]:
        with pytest.raises(ValueError, match="no whole number of keys"):
            PackedKeys(data, width)


def put_many(cluster: Cluster, keys: list[bytes]) -> None:
    call = cluster.call()
    cluster.step(m.PutStart(call, call.to_bytes(16, "big"), keys, [1] * len(keys)))
    started = cluster.answers[call]
    assert isinstance(started, m.PutStarted)
    ended = cluster.answers[cluster.end(started)]
    assert isinstance(ended, m.PutEnded)
    assert ended.copies == [1] * len(keys)


def matched(cluster: Cluster, keys: list[bytes]) -> int:
    answer = cluster.answers[cluster.match(keys)]
    assert isinstance(answer, m.Matched)
    return answer.matched


def test_a_prompt_is_matched_over_runs_and_gaps() -> None:
    cluster = Cluster(nodes=1, capacity=1024 * KIB)
    keys = [b"%04d" % number for number in range(2 * RUN_MAX + 50)]
    put_many(cluster, keys)
    assert matched(cluster, keys) == len(keys)
    assert matched(cluster, keys[100:400]) == 300
    assert matched(cluster, [*keys[:300], b"none", *keys[301:]]) == 300
    assert matched(cluster, [keys[5], keys[4], keys[3]]) == 3
    gone = RUN_MAX + 20
    call = cluster.call()
    cluster.step(m.Remove(call, call.to_bytes(16, "big"), [keys[gone]]))
    assert matched(cluster, keys) == gone
    assert matched(cluster, keys[gone + 1 :]) == len(keys) - gone - 1
    put_many(cluster, [keys[gone]])
    assert matched(cluster, keys) == len(keys)
    check(cluster.core)


def test_a_run_does_not_outlive_most_of_its_objects() -> None:
    cluster = Cluster(nodes=1, capacity=1024 * KIB)
    keys = [b"%04d" % number for number in range(100)]
    put_many(cluster, keys)
    run = cluster.core.state.objects[keys[0]].run
    assert run is not None
    assert len(run.keys) == 400
    call = cluster.call()
    cluster.step(m.Remove(call, call.to_bytes(16, "big"), keys[40:91]))
    assert not run.keys
    assert matched(cluster, keys) == 40
    check(cluster.core)
