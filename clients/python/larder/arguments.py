"""Callers' arguments, checked before anything is done with them. Shared by the store and its reference model."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Final, Literal, TypeVar

from larder.errors import InvalidArgument, LarderError
from larder.keys import Key, encode_keys, listed
from larder.memory import Memory, destination, source
from larder.words import counted

T = TypeVar("T")
COPIES_MAX: Final = 16
TTL_S_MAX: Final = 366 * 86_400
WAIT_S_MAX: Final = 3600.0
_DEPTH_MAX: Final = 2**32 - 1
PINS: Final = ("soft", "hard")
Pin = Literal["soft", "hard"] | None


@dataclass(frozen=True, slots=True)
class Terms:
    """What a put asks for beside its bytes: `pin` is None, "soft" or "hard"; a `ttl_ms` of 0 is no end.

    `wait_s` is for room; None: most of the call's time. `replace`: a key that exists gets the new bytes.
    """

    copies: int = 1
    pin: Pin = None
    ttl_ms: int = 0
    wait_s: float | None = None
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    """The checked arguments of put_many: columns of one entry a key; `depths` may be empty."""

    names: list[bytes]
    memories: list[Memory]
    terms: Terms
    depths: Sequence[int]


def check_put(
    keys: Iterable[Key],
    buffers: Iterable[Any],
    *,
    copies: int,
    depths: Iterable[int] | None,
    pin: Pin,
    ttl_s: float | None,
    started: Callable[[], None] | None,
    wait_s: float | None,
    replace: bool,
) -> Put:
    """The arguments of put_many; raises InvalidArgument."""
    names, memories = _check(keys, buffers, source)
    for name, memory in zip(names, memories, strict=True):
        if not memory.length:
            raise InvalidArgument("buffer of 0 bytes: an object has at least one", key=name)
    copies = _whole(copies, "copies", 1, COPIES_MAX)
    chain = [] if depths is None else _depths(listed(depths, "depths"))
    if depths is not None and len(chain) != len(names):
        raise InvalidArgument(f"expected {counted(len(names), 'depth')}, one for each key, got {len(chain)}")
    if not (pin is None or (isinstance(pin, str) and pin in PINS)):
        raise InvalidArgument(f"pin is {pin!r}: expected None, 'soft' or 'hard'")
    if started is not None and not callable(started):
        raise InvalidArgument(f"started is {started!r}: expected None or a callable")
    ttl_ms = 0 if ttl_s is None else int(1000 * seconds(ttl_s, "ttl_s", 0.001, TTL_S_MAX))
    wait_s = None if wait_s is None else seconds(wait_s, "wait_s", 0, WAIT_S_MAX)
    if not isinstance(replace, bool):
        raise InvalidArgument(f"replace is {replace!r:.60}: expected True or False")
    return Put(names, memories, Terms(copies, pin, ttl_ms, wait_s, replace), chain)


def seconds(value: Any, name: str, low: float, high: float) -> float:
    """A number of seconds within bounds, numpy's numbers too; raises InvalidArgument."""
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # beyond all floats
            number = float(value)
    if not low <= number <= high:
        raise InvalidArgument(f"{name} is {value!r:.60}: expected seconds from {low:g} to {high:g}")
    return number


def _depths(depths: Sequence[int]) -> Sequence[int]:
    if set(map(type, depths)) == {int} and min(depths) >= 0 and max(depths) <= _DEPTH_MAX:
        return depths  # as a prompt's are: a call for each costs more
    return [_whole(depth, "one of depths", 0, _DEPTH_MAX) for depth in depths]


def _whole(value: Any, name: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise InvalidArgument(f"{name} is {value!r:.60}: expected a whole number from {low} to {high}")
    return int(value)


def check_get_into(keys: Iterable[Key], buffers: Iterable[Any]) -> tuple[list[bytes], list[Memory]]:
    """The arguments of get_many_into; raises InvalidArgument."""
    return _check(keys, buffers, destination)


def check_room(memory: Memory, size: int, key: bytes) -> None:
    """Raises InvalidArgument where a buffer is shorter than the object."""
    if memory.length < size:
        raise InvalidArgument(f"buffer of {memory.length} bytes: the object has {size}", key=key)


def or_raise(answer: T | LarderError) -> T:
    """A batch's answer for one key, as a call for one key gives it."""
    if isinstance(answer, LarderError):
        try:
            raise answer
        finally:
            del answer  # its traceback holds this frame
    return answer


def _check(
    keys: Iterable[Key], buffers: Iterable[Any], make: Callable[[Any], Memory]
) -> tuple[list[bytes], list[Memory]]:
    names, buffers = encode_keys(keys), listed(buffers, "buffers")
    if len(names) != len(buffers):
        raise InvalidArgument(f"expected {counted(len(names), 'buffer')}, one for each key, got {len(buffers)}")
    memories: list[Memory] = []
    for name, buffer in zip(names, buffers, strict=True):
        try:
            memories.append(make(buffer))
        except InvalidArgument as error:
            raise InvalidArgument(error.args[0], key=name) from error
    return names, memories
