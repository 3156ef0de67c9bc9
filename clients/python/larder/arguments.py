"""What callers hand in, checked before anything is done with it. Shared by the store and its reference model."""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from larder.errors import InvalidArgument, LarderError
from larder.keys import Key, encode_keys
from larder.memory import Memory, destination, source

T = TypeVar("T")
COPIES_MAX: Final = 16


def check_put(
    keys: Sequence[Key], buffers: Sequence[Any], copies: int, depths: Sequence[int] | None
) -> tuple[list[bytes], list[Memory]]:
    """The arguments of put_many; raises InvalidArgument."""
    names, memories = _check(keys, buffers, source)
    for name, memory in zip(names, memories, strict=True):
        if not memory.length:
            raise InvalidArgument("buffer of 0 bytes: an object has at least one", key=name)
    if isinstance(copies, bool) or not isinstance(copies, int) or not 1 <= copies <= COPIES_MAX:
        raise InvalidArgument(f"copies is {copies!r}: 1 to {COPIES_MAX} are wanted")
    if depths is not None and len(depths) != len(names):
        raise InvalidArgument(f"{len(depths)} depths for {len(names)} keys: one each is wanted")
    if depths and not 0 <= min(depths) <= max(depths) < 2**32:
        raise InvalidArgument(f"depths from {min(depths)} to {max(depths)}: 0 to {2**32 - 1} are wanted")
    return names, memories


def check_get_into(keys: Sequence[Key], buffers: Sequence[Any]) -> tuple[list[bytes], list[Memory]]:
    """The arguments of get_many_into; raises InvalidArgument."""
    return _check(keys, buffers, destination)


def check_length(memory: Memory, size: int, key: bytes) -> None:
    """Raises InvalidArgument where a buffer has not the object's length."""
    if memory.length != size:
        raise InvalidArgument(f"buffer of {memory.length} bytes: {size} are wanted, the object's size", key=key)


def or_raise(answer: T | LarderError) -> T:
    """A batch's answer for one key, as a call for one key gives it."""
    if isinstance(answer, LarderError):
        raise answer
    return answer


def _check(
    keys: Sequence[Key], buffers: Sequence[Any], make: Callable[[Any], Memory]
) -> tuple[list[bytes], list[Memory]]:
    names = encode_keys(keys)
    if len(names) != len(buffers):
        raise InvalidArgument(f"{len(buffers)} buffers for {len(names)} keys: one each is wanted")
    memories: list[Memory] = []
    for name, buffer in zip(names, buffers, strict=True):
        try:
            memories.append(make(buffer))
        except InvalidArgument as error:
            raise InvalidArgument(error.args[0], key=name) from error
    return names, memories
