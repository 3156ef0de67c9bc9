"""Buffers as addresses: what is taken, what is refused and why, and how pieces are cut."""

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from larder.errors import InvalidArgument
from larder.memory import Memory, destination, fresh_bytes, source, view_at


def read(memory: Memory) -> bytes:
    return b"".join(bytes(view_at(address, length)) for address, length in memory.pieces)


def write(memory: Memory, data: bytes) -> None:
    for address, length in memory.pieces:
        ctypes.memmove(address, data, length)
        data = data[length:]


@pytest.mark.parametrize(
    "buffer",
    [
        b"0123456789",
        bytearray(b"0123456789"),
        memoryview(b"0123456789"),
        memoryview(b"xx0123456789")[2:],
        np.frombuffer(b"0123456789", dtype=np.uint8),
        np.frombuffer(b"0123456789", dtype=np.int16).reshape(1, 5, 1),
        [b"0123", bytearray(b""), memoryview(b"456789")],
        (b"0123456789",),
    ],
)
def test_sources(buffer: Any) -> None:
    memory = source(buffer)
    assert memory.length == 10
    assert read(memory) == b"0123456789"


def test_destinations_are_written_in_place() -> None:
    whole = bytearray(10)
    array = np.zeros(5, dtype=np.int16)
    pair = [bytearray(4), bytearray(6)]
    for target, content in (
        (whole, lambda: bytes(whole)),
        (array, array.tobytes),
        (pair, lambda: bytes(pair[0] + pair[1])),
    ):
        write(destination(target), b"0123456789")
        assert content() == b"0123456789"


def test_the_memory_keeps_its_buffer_alive_and_unmoved() -> None:
    buffer = bytearray(b"0123456789")
    memory = destination(buffer)
    with pytest.raises(BufferError):
        buffer.extend(b"more")
    assert read(memory) == b"0123456789"
    kept = source(np.arange(10, dtype=np.uint8).copy())
    assert read(kept) == bytes(range(10))


@pytest.mark.parametrize(
    ("buffer", "said"),
    [
        (7, "type int"),
        ("text", "type str"),
        (None, "type NoneType"),
        (object(), "type object"),
        ([b"good", 7], "type int"),
        (memoryview(bytes(10))[::2], "not contiguous"),
        (np.zeros((4, 4))[:, 1], "not contiguous"),
        (np.array([object()]), "Python objects"),
    ],
)
def test_what_is_no_source(buffer: Any, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        source(buffer)


@pytest.mark.parametrize("buffer", [b"0123", memoryview(b"0123"), np.frombuffer(b"0123", dtype=np.uint8), [b"0123"]])
def test_what_is_read_only_is_no_destination(buffer: Any) -> None:
    with pytest.raises(InvalidArgument, match="read-only"):
        destination(buffer)


def test_tensors() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    assert read(source(tensor)) == tensor.view(torch.uint8).numpy().tobytes()
    assert source(torch.empty(0)).length == 0
    with pytest.raises(InvalidArgument, match="not contiguous"):
        source(tensor.t())
    with pytest.raises(InvalidArgument, match="CPU tensor"):
        source(torch.empty(2, device="meta"))


def test_fresh_bytes_are_the_callers_alone() -> None:
    data, memory = fresh_bytes(5)
    other, _ = fresh_bytes(5)
    write(memory, b"fresh")
    assert data == b"fresh"
    assert other is not data
    with pytest.raises(ValueError, match="fresh"):
        fresh_bytes(1)


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=8), st.data())
def test_cut_is_a_slice(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    memory = source(parts)
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, len(whole) - start))
    cut = memory.cut(start, length)
    assert cut.length == length
    assert read(cut) == whole[start : start + length]
    assert all(size for _, size in cut.pieces) or length == 0


def test_cut_beyond_the_end_is_refused() -> None:
    memory = source(b"0123456789")
    for start, length in ((5, 6), (11, 0), (-1, 2), (2, -1)):
        with pytest.raises(ValueError, match="of 10"):
            memory.cut(start, length)
