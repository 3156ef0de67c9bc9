"""Copies with checksums: the same bytes and the same digest, whatever the pieces."""

import ctypes
import itertools
import time

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from larder import copying
from larder.copying import TooLate, checksum, checksum_of, load_pieces, store_pieces
from larder.memory import destination, source

FOREVER = float("inf")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "CHUNK_BYTES", 7)


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6), st.booleans(), st.sampled_from([7, 4096]))
def test_store_and_load(parts: list[bytes], hashing: bool, chunk: int) -> None:
    whole = b"".join(parts)
    digest = xxhash.xxh3_64_intdigest(whole) if hashing else 0
    pool = bytearray(len(whole) + 2)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pool)) + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "CHUNK_BYTES", chunk)
        assert store_pieces(source(parts).pieces, address, hashing=hashing, until=FOREVER) == digest
        assert pool == b"\0" + whole + b"\0"
        targets = [bytearray(len(part)) for part in parts]
        assert load_pieces(destination(targets).pieces, address, hashing=hashing) == digest
    assert targets == parts


@pytest.mark.usefixtures("small_chunks")
def test_nothing_is_written_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    pool = bytearray(21)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pool))
    with pytest.raises(TooLate):
        store_pieces(source(b"x" * 21).pieces, address, hashing=True, until=2)
    assert pool == b"x" * 14 + bytes(7)
    with pytest.raises(TooLate):
        store_pieces(source(b"y" * 7).pieces, address, hashing=False, until=0)
    assert pool == b"x" * 14 + bytes(7)


def test_no_checksum_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 means that none was made, so a digest of 0 is recorded as 1."""
    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", lambda _: 0)
    assert checksum(source(b"data").pieces) == 1
    assert checksum_of(memoryview(b"data")) == 1
