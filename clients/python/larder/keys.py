"""Keys as callers give them, checked and made bytes; batches cut to the size of a call (invariant 12)."""

from collections.abc import Iterator, Sequence
from typing import Final

from larder.errors import InvalidArgument, show_key

Key = str | bytes

KEY_BYTES_MAX: Final = 1024
BATCH_KEYS_MAX: Final = 16_384
"""Keys in one call to the master; larger batches are split."""


def encode_key(key: Key) -> bytes:
    """The key's bytes; raises InvalidArgument."""
    if isinstance(key, str):
        key = key.encode()
    if not isinstance(key, bytes):
        raise InvalidArgument(f"key of type {type(key).__name__}: str or bytes is wanted")
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise InvalidArgument(f"key of {len(key)} bytes ({show_key(key)}): 1 to {KEY_BYTES_MAX} bytes are wanted")
    return key


def encode_keys(keys: Sequence[Key]) -> list[bytes]:
    """All keys' bytes; raises InvalidArgument, also for a single key in place of a list."""
    if isinstance(keys, str | bytes):
        raise InvalidArgument("a list of keys is wanted, not a single key")
    lengths = set(map(len, keys)) if set(map(type, keys)) == {bytes} else {0}
    if 0 < min(lengths) <= max(lengths) <= KEY_BYTES_MAX:
        return list(keys)  # type: ignore[arg-type]  # all bytes, as a prompt's keys are: a call for each costs more
    return [encode_key(key) for key in keys]


def batches(count: int) -> Iterator[slice]:
    """The ranges of a batch of `count` keys that go into one call each."""
    for start in range(0, count, BATCH_KEYS_MAX):
        yield slice(start, min(start + BATCH_KEYS_MAX, count))
