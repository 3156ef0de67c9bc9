"""Sizes, keys and removals of many, and buffers longer than the object, over the reference model and the real store."""

import os
from collections.abc import Callable
from typing import Any

import larder
import pytest
from larder.testing import AsyncFakeStore

MIB = 2**20


def test_sizes_are_of_what_can_be_read(store: Any, key: str) -> None:
    store.put_many([key, key + "2"], [b"data", bytes(3 * MIB)])
    assert store.sizes([key + "2", key + "-none", key]) == [3 * MIB, None, 4]
    assert store.sizes([]) == []
    store.remove(key)
    assert store.sizes([key]) == [None]


def test_keys_with_a_prefix_come_in_order_page_after_page(store: Any, key: str) -> None:
    names = [f"{key}-{number:05}".encode() for number in range(2_345)]
    store.put_many(names[::-1], [b"x"] * len(names))
    store.put(key[:-1] + "~", b"another's")
    assert list(store.keys(key)) == names
    assert list(store.keys(key.encode() + b"-0002")) == names[20:30]
    assert list(store.keys(key + "/")) == []
    assert set(names) < set(store.keys())
    few = store.keys(key)
    assert [next(few) for _ in range(3)] == names[:3]
    assert store.remove_many([*names, key + "-none", names[0]]) == [True] * len(names) + [False, False]
    assert list(store.keys(key)) == []
    assert store.exists(names[:2]) == [False, False]


def test_what_is_put_or_removed_while_keys_are_listed_breaks_nothing(store: Any, key: str) -> None:
    names = [f"{key}-{number:05}".encode() for number in range(1_500)]
    store.put_many(names, [b"x"] * len(names))
    seen = []
    for name in store.keys(key):
        seen.append(name)
        if name == names[10]:
            store.remove_many(names[11:900])
            store.put(names[11], b"again")
    assert seen[:11] == names[:11]
    assert seen[-600:] == names[900:]


BAD: dict[str, Callable[[Any], Any]] = {
    "got int": lambda store: store.keys(5),
    "1025 bytes": lambda store: store.keys("k" * 1025),
    "key of 0 bytes": lambda store: store.sizes([""]),
    "expected a list of keys": lambda store: store.remove_many("key"),
}


@pytest.mark.parametrize("said", BAD)
def test_bad_arguments(store: Any, said: str) -> None:
    with pytest.raises(larder.InvalidArgument, match=said):
        BAD[said](store)


@pytest.mark.parametrize("size", [1, 1000, 3 * MIB + 1])
@pytest.mark.parametrize("register", [False, True])
def test_bytes_beyond_the_object_stay_untouched(store: Any, key: str, size: int, register: bool) -> None:
    data = os.urandom(size)
    store.put(key, data)
    buffer = bytearray(b"#" * (size + 300))
    if register:
        store.register_buffer(buffer)
    assert store.get_into(key, buffer) == size
    assert buffer == data + b"#" * 300
    if register:
        store.unregister_buffer(buffer)


def test_buffers_of_pieces_may_be_longer_too(store: Any, key: str) -> None:
    store.put_many([key, key + "2"], [b"0123456789", b"ab"])
    pieces = [bytearray(b"####"), bytearray(b"########"), bytearray(b"##")]
    assert store.get_many_into([key, key + "2", key + "3"], [pieces, bytearray(2), bytearray(5)]) == [10, 2, None]
    assert pieces == [b"0123", b"456789##", b"##"]


@pytest.mark.parametrize("kind", ["fake", "real"])
async def test_the_same_names_are_awaitable(store_cluster: Any, key: str, kind: str) -> None:
    names = [f"{key}-{number}".encode() for number in range(3)]
    opened: Any = AsyncFakeStore() if kind == "fake" else larder.aio.connect(store_cluster.master)
    async with opened as store:
        await store.put_many(names, [b"x", b"yy", b"zzz"])
        assert await store.sizes(names) == [1, 2, 3]
        assert [name async for name in store.keys(key)] == names
        assert await store.remove_many(names) == [True] * 3
        with pytest.raises(larder.InvalidArgument):
            store.keys(5)


def test_a_closed_store_says_so(store: Any, key: str) -> None:
    store.put_many([key, key + "2"], [b"x", b"y"])
    listing = store.keys(key)
    store.close()
    for call in (lambda: store.sizes([key]), lambda: store.keys(key), lambda: store.remove_many([key])):
        with pytest.raises(larder.StoreClosed):
            call()
    del listing
