"""JSON, read and written by the fastest library there is: prompts of a hundred kilobytes must not hold up the others.

Where that is stricter than the standard library (NaN, half a surrogate pair), the standard library has the last word,
so that no client is refused what engines take. NaN and infinities are written as null.
"""

import json
from typing import Any

import msgspec


def decode(content: bytes) -> Any:
    """Raises ValueError or RecursionError, with a message that says where."""
    try:
        return msgspec.json.decode(content)
    except ValueError:
        return json.loads(content.decode("utf-8-sig"))


def encode(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
