"""How many of its prompt's tokens a client is told were cached: as many as the prefill engine found, since it is billed
by them.

The decode engine counts as cached what the prefill has just computed for it, which is nearly everything. Its bytes are
passed on as they come, except for these numbers, even where they arrive in pieces.
"""

import re
from typing import Final, NamedTuple

import msgspec

_NAMES: Final = (b'"cached_tokens"', b'"created_cache_tokens"')
_COUNTS: Final = re.compile(rb'("c(?:ached|reated_cache)_tokens")\s*:\s*(?:\d+|null)')
_REST: Final = re.compile(rb"\s*(?::\s*(?:\d*|n|nu|nul))?")
_WINDOW: Final = 64  # bytes that a name and its number may take
_WHOLE: Final = (b"\n", b"}")  # no beginning of them ends so


class Cached(NamedTuple):
    """None: the engine does not say (it does with --enable-prompt-tokens-details)."""

    found: int | None = None
    made: int | None = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    created_cache_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens_details: _Details | None = None


class _Answer(msgspec.Struct, gc=False):
    usage: _Usage | None = None


_answer: Final = msgspec.json.Decoder(_Answer)


def cached_of(answer: bytes) -> Cached:
    """What a prefill's answer says."""
    try:
        usage = _answer.decode(answer).usage
    except (ValueError, RecursionError):
        return Cached()
    details = (usage and usage.prompt_tokens_details) or _Details()
    return Cached(details.cached_tokens, details.created_cache_tokens)


class Corrector:
    """Puts the right numbers into an answer, piece by piece."""

    def __init__(self) -> None:
        self._held = b""

    def concerns(self, piece: bytes) -> bool:
        """Whether it contains such a number, or may."""
        return bool(self._held) or (b'_tokens"' in piece and any(name in piece for name in _NAMES))

    def feed(self, piece: bytes, cached: Cached | None, *, last: bool) -> bytes:
        """What can be passed on: all of it, except a number that may continue in the next piece. Cached None: the
        engine's own numbers stay."""
        piece, self._held = self._held + piece, b""
        if not last and (rest := _unfinished(piece)):
            piece, self._held = piece[:-rest], piece[-rest:]
        if cached is None or b'_tokens"' not in piece:
            return piece
        return _COUNTS.sub(lambda found: b"%b:%b" % (found[1], _written(found[1], cached)), piece)


def _unfinished(piece: bytes) -> int:
    """How many bytes at the end may be the beginning of a count."""
    if piece.endswith(_WHOLE):
        return 0
    start = len(piece) - 1 if piece.endswith(b'"') else piece.rfind(b'"c', -_WINDOW)
    for name in _NAMES:
        for begin in {start, piece.rfind(name, -_WINDOW)} - {-1}:
            tail = piece[begin:]
            if name.startswith(tail) or (tail.startswith(name) and _REST.fullmatch(tail[len(name) :])):
                return len(tail)
    return 0


def _written(name: bytes, cached: Cached) -> bytes:
    count = cached.found if name == _NAMES[0] else cached.made
    return b"null" if count is None else b"%d" % count
