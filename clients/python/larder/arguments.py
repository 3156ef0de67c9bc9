"""What callers hand in, checked before anything is done with it. Shared by the store and its reference model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from larder.errors import InvalidArgument, LarderError
from larder.keys import Key, encode_keys
from larder.memory import Memory, destination, source

T = TypeVar("T")
COPIES_MAX: Final = 16
TTL_S_MAX: Final = 366 * 86_400
PINS: Final = ("soft", "hard")
Pin = Literal["soft", "hard"] | None


@dataclass(frozen=True, slots=True)
class Terms:
    """What a put asks for beside its bytes: `pin` is None, "soft" or "hard"; a `ttl_ms` of 0 is no end."""

    copies: int = 1
    pin: Pin = None
    ttl_ms: int = 0


def check_put(
    keys: Sequence[Key],
    buffers: Sequence[Any],
    *,
    copies: int,
    depths: Sequence[int] | None,
    pin: Pin,
    ttl_s: float | None,
) -> tuple[list[bytes], list[Memory], Terms]:
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
    if pin is not None and pin not in PINS:
        raise InvalidArgument(f"pin is {pin!r}: None, 'soft' or 'hard' is wanted")
    if ttl_s is not None and (
        isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not 0.001 <= ttl_s <= TTL_S_MAX
    ):
        raise InvalidArgument(f"ttl_s is {ttl_s!r}: None, or seconds from 0.001 to {TTL_S_MAX} are wanted")
    return names, memories, Terms(copies, pin, int(ttl_s * 1000) if ttl_s is not None else 0)


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
