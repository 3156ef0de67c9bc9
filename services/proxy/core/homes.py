"""Which engine made which response: what refers to one (previous_response_id, /v1/responses/ID) must go there.

Bounded (invariant 12): for old responses the proxy asks the engines themselves.
"""

import re
from collections.abc import Iterable
from typing import Final, TypeGuard

from services.proxy.core.codec import decode_text
from services.proxy.core.engine import Address
from services.proxy.core.requests import Fields

HOMES_MAX: Final = 65_536
ID_CHARACTERS: Final = 256
_ID: Final = re.compile(rb'"id"\s*:\s*"([^"\\]{1,%d})"' % ID_CHARACTERS)
_HEAD_BYTES: Final = 4096


class Homes:
    def __init__(self) -> None:
        self._homes: dict[str, Address] = {}  # the oldest first

    def note(self, id: str, home: Address) -> None:
        self._homes.pop(id, None)
        self._homes[id] = home
        if len(self._homes) > HOMES_MAX:
            del self._homes[next(iter(self._homes))]

    def get(self, id: str) -> Address | None:
        return self._homes.get(id)


def response_made(answer: bytes) -> str | None:
    """The id of the response whose answer, or stream's first event, begins with these bytes."""
    found = _ID.search(answer, 0, _HEAD_BYTES)
    return None if found is None else found[1].decode(errors="replace")


def response_followed(path: Iterable[str], fields: Fields) -> str | None:
    """The id of the response a request is about: named in its path (split at slashes) or previous_response_id."""
    match tuple(path):
        case ("v1", "responses", named, *_):
            return named if _can_be_id(named) else None
        case ("v1", "responses") if "previous_response_id" in fields:
            before = decode_text(fields["previous_response_id"])
            return before if _can_be_id(before) else None
    return None


def _can_be_id(named: object) -> TypeGuard[str]:
    return isinstance(named, str) and 0 < len(named) <= ID_CHARACTERS and named.isprintable()
