"""Keys as callers give them, checked and made bytes; batches cut to the size of a call (invariant 12)."""

from collections.abc import Iterable, Iterator, KeysView, Sequence, Set
from typing import Final, TypeVar

from larder.errors import InvalidArgument, show_key

Key = str | bytes
T = TypeVar("T")

KEY_BYTES_MAX: Final = 1024
BATCH_KEYS_MAX: Final = 16_384
"""Keys in one call to the master; larger batches are split."""
PAGE_KEYS: Final = 1_000
"""Keys in one page of a listing."""


class Page:
    """Where a listing of keys stands."""

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self.after = b""
        self.more = True


def encode_key(key: Key) -> bytes:
    """The key's bytes; raises InvalidArgument."""
    if isinstance(key, str):
        try:
            key = key.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"key {key!a} has a lone surrogate, which UTF-8 cannot say: give bytes") from error
    if not isinstance(key, bytes):
        raise InvalidArgument(f"key: expected str or bytes, got {type(key).__name__}")
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise InvalidArgument(f"key of {len(key)} bytes ({show_key(key)}): expected 1 to {KEY_BYTES_MAX}")
    return key


def encode_prefix(prefix: Key) -> bytes:
    """The bytes of what keys begin with, which may be none; raises InvalidArgument."""
    return b"" if isinstance(prefix, str | bytes) and not prefix else encode_key(prefix)


def listed(values: Iterable[T], name: str) -> Sequence[T]:
    """What was given as a list, or can be read as one, once; raises InvalidArgument."""
    if isinstance(values, list | tuple):
        return values
    if isinstance(values, str | bytes | bytearray | memoryview | Set) and not isinstance(values, KeysView):
        raise InvalidArgument(f"expected a list of {name}, got one {type(values).__name__}")
    try:
        return list(values)
    except TypeError as error:
        raise InvalidArgument(f"expected a list of {name}, got one {type(values).__name__}") from error


def encode_keys(keys: Iterable[Key]) -> list[bytes]:
    """All keys' bytes; raises InvalidArgument, also for a single key in place of a list."""
    keys = listed(keys, "keys")
    lengths = set(map(len, keys)) if set(map(type, keys)) == {bytes} else {0}
    if 0 < min(lengths) <= max(lengths) <= KEY_BYTES_MAX:
        return list(keys)  # type: ignore[arg-type]  # all bytes, as a prompt's keys are: a call for each costs more
    return [encode_key(key) for key in keys]


def batches(count: int) -> Iterator[slice]:
    """The ranges of a batch of `count` keys that go into one call each."""
    for start in range(0, count, BATCH_KEYS_MAX):
        yield slice(start, min(start + BATCH_KEYS_MAX, count))
