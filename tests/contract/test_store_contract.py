"""One suite over the reference model and the real store by either transport, so that the fake cannot drift.

What only a real store can do (fail over, run out of leases, lose its master) is in test_store_faults.
"""

import os
import threading
import time
from itertools import pairwise
from typing import Any

import larder
import numpy as np
import pytest
from larder.testing import AsyncFakeStore, FakeStore

MIB = 2**20


@pytest.fixture(params=["fake", "shm"])
def open_aio(request: pytest.FixtureRequest) -> Any:
    if request.param == "fake":
        return AsyncFakeStore
    master = request.getfixturevalue("store_cluster").master
    return lambda: larder.aio.connect(master, transports=[request.param])


SIZES = (1, 2, 4095, 65_536, 65_537, MIB - 1, MIB, MIB + 1, 5 * MIB + 3)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_put_is_got(store: Any, key: str, size: int) -> None:
    data = os.urandom(size)
    assert store.put(key, data) == larder.PutResult(copies=1, existed=False)
    assert store.get(key) == data
    buffer = bytearray(size)
    assert store.get_into(key, buffer) == size
    assert buffer == data
    with store.view(key) as memory:
        assert memory == data


def test_a_miss_is_none_everywhere(store: Any, key: str) -> None:
    assert store.get(key) is None
    assert store.get_into(key, bytearray(8)) is None
    assert store.get_tensor(key) is None
    assert store.get_many([key, key]) == [None, None]
    assert store.get_many_into([key], [bytearray(8)]) == [None]
    assert store.match([key]) == 0
    assert store.exists([key]) == [False]
    assert store.remove(key) is False
    with store.view(key) as memory:
        assert memory is None


def test_a_key_twice_in_a_batch_is_stored_once(store: Any, key: str) -> None:
    results = store.put_many([key, key], [b"data", b"data"])
    assert sorted(result.existed for result in results) == [False, True]
    assert store.get_many([key, key]) == [b"data", b"data"]


def test_an_object_never_changes(store: Any, key: str) -> None:
    store.put(key, b"first")
    assert store.put(key, b"second, longer") == larder.PutResult(copies=0, existed=True)
    assert store.get(key) == b"first"


def test_two_copies_on_two_nodes_and_no_more(store: Any, key: str) -> None:
    assert store.put(key + "2", b"data", copies=2).copies == 2
    assert store.put(key + "3", b"data", copies=3).copies == 2


def test_what_has_a_time_to_live_is_a_miss_after_it(store: Any, key: str) -> None:
    store.put(key, b"short", ttl_s=0.5)
    store.put(key + "2", b"long", ttl_s=60)
    assert store.get_many([key, key + "2"]) == [b"short", b"long"]
    time.sleep(0.6)
    assert store.get(key) is None
    assert store.exists([key, key + "2"]) == [False, True]
    assert store.match([key]) == 0
    assert store.remove(key) is False
    assert store.put(key, b"again") == larder.PutResult(copies=1, existed=False)
    assert store.get(key) == b"again"
    assert store.remove(key + "2") is True
    store.put(key + "2", b"for good")
    assert store.get(key + "2") == b"for good"


@pytest.mark.parametrize("pin", [None, "soft", "hard"])
def test_pinned_objects_are_got_and_removed_like_any(store: Any, key: str, pin: str | None) -> None:
    (result,) = store.put_many([key], [b"bytes"], pin=pin)
    assert result == larder.PutResult(copies=1, existed=False)
    assert store.get(key) == b"bytes"
    assert store.remove(key) is True


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"ttl_s": 0}, "ttl_s is 0"),
        ({"ttl_s": -1.0}, "ttl_s is -1.0"),
        ({"ttl_s": 1e12}, "ttl_s is"),
        ({"ttl_s": "1"}, "ttl_s is '1'"),
        ({"pin": "firm"}, "pin is 'firm'"),
        ({"pin": True}, "pin is True"),
    ],
)
def test_bad_terms(store: Any, key: str, terms: dict[str, Any], reason: str) -> None:
    with pytest.raises(larder.InvalidArgument, match=reason):
        store.put(key, b"bytes", **terms)


def test_remove_forgets(store: Any, key: str) -> None:
    store.put(key, b"data")
    assert store.remove(key) is True
    assert store.get(key) is None
    assert store.remove(key) is False
    store.put(key, b"again")
    assert store.get(key) == b"again"


def test_keys_are_bytes_and_text_alike(store: Any, key: str) -> None:
    store.put(key + "ü", b"data")
    assert store.get((key + "ü").encode()) == b"data"
    longest = os.urandom(1024)
    store.put(longest, b"long")
    assert store.get(longest) == b"long"


@pytest.mark.parametrize("key", ["", b"", "k" * 1025, b"k" * 1025, 7, None, bytearray(b"key")])
def test_bad_keys(store: Any, key: Any) -> None:
    calls = (
        lambda: store.put(key, b"data"),
        lambda: store.get(key),
        lambda: store.get_into(key, bytearray(1)),
        lambda: store.match([key]),
        lambda: store.exists(["good", key]),
        lambda: store.remove(key),
    )
    for call in calls:
        with pytest.raises(larder.InvalidArgument, match="key"):
            call()


def test_one_key_is_no_list(store: Any) -> None:
    for call in (store.exists, store.match, store.get_many):
        with pytest.raises(larder.InvalidArgument, match="list of keys"):
            call("key")


def test_bad_buffers_to_put(store: Any, key: str) -> None:
    cases = {
        "0 bytes": b"",
        "contiguous": memoryview(bytes(16))[::2],
        "type int": 7,
        "type NoneType": None,
    }
    for said, buffer in cases.items():
        with pytest.raises(larder.InvalidArgument, match=said) as caught:
            store.put(key, buffer)
        assert key in str(caught.value)
    assert store.exists([key]) == [False]


def test_bad_buffers_to_get_into(store: Any, key: str) -> None:
    store.put(key, b"0123456789")
    for short in (bytearray(9), bytearray(0), [bytearray(5), bytearray(4)]):
        with pytest.raises(larder.InvalidArgument, match="the object has 10") as caught:
            store.get_into(key, short)
        assert key in str(caught.value)
    with pytest.raises(larder.InvalidArgument, match="read-only"):
        store.get_into(key, bytes(10))
    with pytest.raises(larder.InvalidArgument, match="contiguous"):
        store.get_into(key, memoryview(bytearray(20))[::2])


def test_bad_batches(store: Any, key: str) -> None:
    with pytest.raises(larder.InvalidArgument, match="expected 2 buffers, one for each key, got 1"):
        store.put_many([key, key + "b"], [b"data"])
    with pytest.raises(larder.InvalidArgument, match="expected 1 buffer, one for each key, got 0"):
        store.get_many_into([key], [])
    for depths in ([1, 2], [-1]):
        with pytest.raises(larder.InvalidArgument, match="depth"):
            store.put_many([key], [b"data"], depths=depths)
    for copies in (0, -1, 17, True, "2"):
        with pytest.raises(larder.InvalidArgument, match="copies"):
            store.put(key, b"data", copies=copies)
    for wait_s in (-1, True, float("nan")):
        with pytest.raises(larder.InvalidArgument, match="wait_s is"):
            store.put_many([key], [b"data"], wait_s=wait_s)
    assert store.exists([key]) == [False]


def test_empty_batches(store: Any) -> None:
    assert store.put_many([], []) == []
    assert store.get_many([]) == []
    assert store.get_many_into([], []) == []
    assert store.match([]) == 0
    assert store.exists([]) == []


def test_batches_answer_in_order(store: Any, key: str) -> None:
    keys = [f"{key}-{index}" for index in range(300)]
    data = [os.urandom(1 + 977 * index) for index in range(300)]
    store.put(keys[7], data[7])
    results = store.put_many(keys, data, depths=range(300))
    assert [result.existed for result in results] == [index == 7 for index in range(300)]
    assert store.get_many([*keys, key]) == [*data, None]
    assert store.exists([keys[299], key, keys[0]]) == [True, False, True]
    assert store.match([*keys, key]) == 300
    assert store.match([keys[0], key, keys[1]]) == 1


def test_per_key_errors_stand_in_their_places(store: Any, key: str) -> None:
    keys = [key + "a", key + "b", key + "c"]
    store.put_many(keys[:2], [b"aaaa", b"bbbb"])
    first = bytearray(4)
    answers = store.get_many_into(keys, [first, bytearray(3), bytearray(4)])
    assert answers[0] == 4
    assert first == b"aaaa"
    assert isinstance(answers[1], larder.InvalidArgument)
    assert answers[1].key == keys[1].encode()
    assert answers[2] is None


def test_gather_and_scatter(store: Any, key: str) -> None:
    data = os.urandom(3 * MIB + 10)
    cuts = [0, 1, 1, 70_000, MIB + 5, 2 * MIB, len(data)]
    pieces = [data[start:end] for start, end in pairwise(cuts)]
    store.put_many([key], [pieces])
    assert store.get(key) == data
    targets = [bytearray(len(piece)) for piece in reversed(pieces)]
    assert store.get_many_into([key], [targets]) == [len(data)]
    assert b"".join(targets) == data


def test_many_small_pieces(store: Any, key: str) -> None:
    pieces = [os.urandom(4096) for _ in range(200)]
    store.put_many([key], [pieces])
    targets = [bytearray(4096) for _ in range(200)]
    assert store.get_many_into([key], [targets]) == [200 * 4096]
    assert targets == pieces


def test_arrays_and_tensors_are_buffers(store: Any, key: str) -> None:
    torch = pytest.importorskip("torch")
    array = np.arange(1000, dtype=np.float64).reshape(10, 100)
    store.put(key + "array", array)
    assert store.get(key + "array") == array.tobytes()
    tensor = torch.randn(16, 33).to(torch.bfloat16)
    store.put(key + "tensor", tensor)
    found = torch.zeros(16, 33, dtype=torch.bfloat16)
    assert store.get_into(key + "tensor", found) == 16 * 33 * 2
    assert torch.equal(found, tensor)
    with pytest.raises(larder.InvalidArgument, match="not contiguous"):
        store.put(key, tensor.t())
    with pytest.raises(larder.InvalidArgument, match="CPU tensor"):
        store.put(key, torch.empty(4, device="meta"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "float64"])
def test_tensors_come_back_as_they_were(store: Any, key: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    for shape in ((3, 1, 5), (), (7,), (0, 4)):
        key = key + repr(shape)
        tensor = (torch.rand(shape) * 100).to(getattr(torch, dtype))
        store.put_tensor(key, tensor)
        found = store.get_tensor(key)
        assert found.dtype == tensor.dtype
        assert found.shape == tensor.shape
        assert torch.equal(found, tensor)


def test_what_is_no_tensor_is_refused(store: Any, key: str) -> None:
    pytest.importorskip("torch")
    with pytest.raises(larder.InvalidArgument, match="expected a torch tensor"):
        store.put_tensor(key, b"bytes")
    store.put(key, b"bytes" * 100)
    with pytest.raises(larder.InvalidArgument, match="put_tensor"):
        store.get_tensor(key)


def test_started_is_called_once_before_the_objects_are_there(store: Any, key: str) -> None:
    calls: list[int] = []
    keys = [key + "a", key + "b"]
    store.put_many(keys, [b"data"] * 2, started=lambda: calls.append(1))
    assert calls == [1]
    with pytest.raises(RuntimeError, match="no"):
        store.put_many([key + "c"], [b"data"], started=_refuse)
    assert store.exists([*keys, key + "c"]) == [True, True, False]


def test_no_calls_from_the_callback(store: Any, key: str) -> None:
    if isinstance(store, FakeStore):
        pytest.skip("the fake has no thread to wait for")
    with pytest.raises(larder.InvalidArgument, match="callback"):
        store.put_many([key], [b"data"], started=lambda: store.get(key))


def _refuse() -> None:
    raise RuntimeError("no")


def test_a_view_is_read_only_and_ends_with_its_block(store: Any, key: str) -> None:
    store.put(key, b"0123456789" * 1000)
    with store.view(key) as memory:
        assert memory.readonly
        kept = memory
    with pytest.raises(ValueError, match="released"):
        kept[0]
    with pytest.raises(KeyError), store.view(key):
        raise KeyError


def test_registered_memory_is_read_and_written(store: Any, key: str) -> None:
    pool = bytearray(os.urandom(4 * MIB))
    store.register_buffer(pool)
    view = memoryview(pool)
    store.put(key, view[: 2 * MIB])
    assert store.get_into(key, view[2 * MIB :]) == 2 * MIB
    assert view[: 2 * MIB] == view[2 * MIB :]
    store.unregister_buffer(pool)


def test_threads_may_share_a_store(store: Any, key: str) -> None:
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(10):
            name, data = f"{key}-{number}-{turn}", os.urandom(50_000)
            store.put(name, data)
            if store.get(name) != data:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_stats_count(store: Any, key: str) -> None:
    store.put(key, b"0123456789")
    store.get_many([key, key + "missing"])
    stats = store.stats()
    assert (stats["puts"], stats["gets"], stats["hits"], stats["misses"]) == (1, 2, 1, 1)
    assert (stats["put_bytes"], stats["get_bytes"]) == (10, 10)


def test_a_closed_store_says_so(store: Any, key: str) -> None:
    store.put(key, b"data")
    store.close()
    store.close()
    for call in (lambda: store.get(key), lambda: store.put(key, b"data"), lambda: store.match([key])):
        with pytest.raises(larder.StoreClosed):
            call()


async def test_the_awaitable_store_has_the_same_names(open_aio: Any, key: str) -> None:
    async with open_aio() as store:
        keys = [f"{key}-{index}" for index in range(3)]
        data = [os.urandom(MIB), b"b", b"c"]
        results = await store.put_many(keys, data, copies=2)
        assert [result.copies for result in results] == [2, 2, 2]
        assert await store.put(keys[0], b"other") == larder.PutResult(copies=0, existed=True)
        assert await store.get_many(keys) == data
        assert await store.get(keys[1]) == b"b"
        buffer = bytearray(1)
        assert await store.get_into(keys[2], buffer) == 1
        async with store.view(keys[0]) as memory:
            assert memory == data[0]
        assert await store.match(keys, wait_s=0.1) == 3
        assert await store.exists(keys) == [True] * 3
        assert await store.remove(keys[0])
        assert await store.match(keys) == 0
        assert store.stats()["puts"] == 4
    with pytest.raises(larder.StoreClosed):
        await store.get(keys[1])


def test_both_stores_have_the_same_methods() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(FakeStore) == public(larder.Store) == public(larder.aio.Store)
