"""What callers hand in that is no list, no number or not its own bytes: used for what it is, or refused by name."""

import array
import functools
import mmap
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import larder
import numpy as np
import pytest
import torch

SURROGATE = "layer\ud800"


def once(values: Iterable[Any]) -> Iterable[Any]:
    """What can be read through only once."""
    return (value for value in values)


def test_what_can_be_read_only_once_is_used_as_a_list(store: Any, key: str) -> None:
    keys = [f"{key}{number}" for number in range(3)]
    put = store.put_many(once(keys), once([b"one", b"two", b"three"]), depths=once(range(3)))
    assert put == [larder.PutResult(copies=1, existed=False)] * 3
    assert store.exists(once(keys)) == [True] * 3
    assert store.match(once(keys)) == 3
    assert store.match(dict.fromkeys(keys).keys()) == 3
    assert store.get_many(once(keys)) == [b"one", b"two", b"three"]
    buffers = [bytearray(3), bytearray(3), bytearray(5)]
    assert store.get_many_into(once(keys), once(buffers)) == [3, 3, 5]
    assert buffers == [b"one", b"two", b"three"]
    assert store.exists(np.array(keys)) == [True] * 3


@pytest.mark.parametrize("keys", [None, 7, {"a", "b"}, bytearray(b"ab"), memoryview(b"ab"), [["a"]], [None]])
def test_what_is_no_list_of_keys_is_refused(store: Any, keys: Any) -> None:
    for call in (store.exists, store.match, store.get_many):
        with pytest.raises(larder.InvalidArgument, match="key"):
            call(keys)


def test_what_is_no_list_of_buffers_is_refused(store: Any, key: str) -> None:
    for buffers in (None, 5, b"bytes", {b"bytes"}):
        with pytest.raises(larder.InvalidArgument, match="expected a list of buffers"):
            store.put_many([key], buffers)
    assert store.exists([key]) == [False]


def test_a_key_that_utf8_cannot_say_is_refused(store: Any) -> None:
    calls: list[Callable[[], Any]] = [
        functools.partial(store.put, SURROGATE, b"data"),
        functools.partial(store.get, SURROGATE),
        functools.partial(store.get_tensor, SURROGATE),
        functools.partial(store.remove, SURROGATE),
        functools.partial(store.exists, ["a", SURROGATE]),
        functools.partial(store.match, [SURROGATE]),
        functools.partial(store.put_many, [SURROGATE], [b"data"]),
        functools.partial(store.get_many_into, [SURROGATE], [bytearray(4)]),
    ]
    for call in calls:
        with pytest.raises(larder.InvalidArgument, match="lone surrogate") as caught:
            call()
        str(caught.value).encode()  # can be logged
    with pytest.raises(larder.InvalidArgument, match="lone surrogate"), store.view(SURROGATE):
        pass


@pytest.mark.parametrize(
    "wait_s", [float("inf"), float("nan"), pytest.param(10**400, id="huge"), -1, None, "1", True, 1e9]
)
def test_a_wait_is_a_number_of_seconds(store: Any, key: str, wait_s: Any) -> None:
    with pytest.raises(larder.InvalidArgument, match="wait_s is"):
        store.match([key], wait_s=wait_s)


def test_numbers_of_numpy_are_numbers(store: Any, key: str) -> None:
    put = functools.partial(store.put_many, [key], [b"data"])
    assert store.match([key], wait_s=np.float32(0)) == 0
    assert put(copies=np.int64(1), ttl_s=np.float64(60), depths=np.array([3]))[0].copies == 1


@pytest.mark.parametrize("depths", [[None], ["1"], [1.5], [-1], [2**32], [True], 3, np.array([[1]]), np.array([0.5])])
def test_depths_are_whole_numbers(store: Any, key: str, depths: Any) -> None:
    with pytest.raises(larder.InvalidArgument, match="depth"):
        store.put_many([key], [b"data"], depths=depths)
    assert store.exists([key]) == [False]


def released() -> memoryview:
    view = memoryview(b"data")
    view.release()
    return view


def closed() -> mmap.mmap:
    memory = mmap.mmap(-1, 4096)
    memory.close()
    return memory


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: np.ma.array([1, 2], mask=[False, True]), r"\.filled"),
        (lambda: np.array(["a", None]), "Python objects"),
        (released, "released"),
        (closed, "closed"),
        (lambda: torch.eye(3).to_sparse(), "sparse_coo"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse_csr"),
        (lambda: torch.eye(3).to_mkldnn(), "mkldnn"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 3, torch.qint8), "scale and zero point"),
        (lambda: torch.ones(4, device="meta"), "CPU tensor"),
        (lambda: torch.eye(3)[:, 1], "contiguous"),
    ],
)
def test_buffers_whose_bytes_are_not_their_values_are_refused(
    store: Any, key: str, make: Callable[[], Any], reason: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: prototypes, and what it means to remove
        buffer = make()
    puts = [functools.partial(store.put, key), functools.partial(store.get_into, key)]
    if isinstance(buffer, torch.Tensor):
        puts.append(functools.partial(store.put_tensor, key))
    for call in puts:
        with pytest.raises(larder.InvalidArgument, match=reason):
            call(buffer)
    assert store.exists([key]) == [False]


COMPLEX = torch.tensor([1 + 2j, 3 - 4j])
LAZY = {
    "conjugate": (COMPLEX.conj(), [1 - 2j, 3 + 4j]),
    "negative": (torch._neg_view(torch.arange(3.0)), [0.0, -1.0, -2.0]),
    "both": (torch._neg_view(COMPLEX.conj()), [-1 + 2j, -3 - 4j]),
    "zeros": (torch._efficientzerotensor(3), [0.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("name", LAZY)
def test_a_lazy_tensors_values_are_stored(store: Any, key: str, name: str) -> None:
    tensor, values = LAZY[name]
    store.put_tensor(key, tensor)
    got = store.get_tensor(key)
    assert (got.dtype, got.tolist()) == (tensor.dtype, values)
    store.put(key + "raw", tensor)
    assert np.frombuffer(store.get(key + "raw"), dtype=got.numpy().dtype).tolist() == values


def test_nothing_is_read_into_a_lazy_view(store: Any, key: str) -> None:
    store.put(key, bytes(16))
    memory = torch.ones(2, dtype=torch.complex64)
    with pytest.raises(larder.InvalidArgument, match="lazy"):
        store.get_into(key, memory.conj())
    assert memory.tolist() == [1, 1]


def dtypes() -> list[torch.dtype]:
    found = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    return sorted((dtype for dtype in found if not str(dtype).startswith("torch.q")), key=str)


@pytest.mark.parametrize("dtype", dtypes(), ids=str)
def test_tensors_of_every_type_come_back(store: Any, key: str, dtype: torch.dtype) -> None:
    tensor = torch.arange(48, dtype=torch.uint8).view(dtype) if dtype is not torch.bool else torch.tensor([True, False])
    tensor = tensor.reshape(1, -1)
    store.put_tensor(key, tensor)
    got = store.get_tensor(key)
    assert (got.dtype, got.shape) == (dtype, tensor.shape)
    assert got.view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist()


def test_an_array_of_no_bytes_is_no_object(store: Any, key: str) -> None:
    for empty in (np.zeros(3, dtype="V0"), np.zeros((0, 4)), torch.empty(0), b""):
        with pytest.raises(larder.InvalidArgument, match="0 bytes"):
            store.put(key, empty)


def test_plain_arrays_of_any_kind_are_buffers(store: Any, key: str) -> None:
    for number, buffer in enumerate((array.array("d", [1.5]), np.float64(1.5), np.array(1.5))):
        store.put(f"{key}{number}", buffer)
        assert store.get(f"{key}{number}") == np.float64(1.5).tobytes()
