"""JSON, read and written by the fastest library there is: prompts of a hundred kilobytes must not hold up others.

Where it is stricter than the standard library (NaN, half a surrogate pair), the standard library has the last word, so
that no client is refused what engines accept. NaN and infinities are written as null.
"""

import json
import re
from itertools import islice
from typing import Any, Final

import msgspec

Raw = msgspec.Raw
"""A value as it was written: a view into the body, not a copy."""

LENIENT_BYTES_MAX: Final = 1 << 20
FIELDS_MAX: Final = 1 << 18  # wherever they stand; at the top, each takes 2 us
_FIELD: Final = re.compile(rb'"\s*:')
_fields: Final = msgspec.json.Decoder(dict[str, Raw])


class NotAnObject(ValueError):
    pass


class TooManyFields(ValueError):
    pass


def decode(content: bytes) -> Any:
    """Raises ValueError or RecursionError; the message says where."""
    try:
        return msgspec.json.decode(content)
    except ValueError:
        return json.loads(content.decode("utf-8-sig"))


def decode_fields(content: bytes) -> dict[str, Raw]:
    """The fields of an object, their values unread: 60 MB of `[],[],` would be 1.3 GB of lists, and seconds of work.

    Raises NotAnObject, TooManyFields, another ValueError, or RecursionError. What the standard library may have to read
    is bounded.
    """
    if content.count(b":") > FIELDS_MAX and next(islice(_FIELD.finditer(content), FIELDS_MAX, None), None) is not None:
        raise TooManyFields(f"over {FIELDS_MAX} fields")
    try:
        return _fields.decode(content)
    except msgspec.ValidationError as error:
        raise NotAnObject(str(error)) from error
    except ValueError:
        if len(content) > LENIENT_BYTES_MAX:
            raise
    read = json.loads(content.decode("utf-8-sig"))
    if not isinstance(read, dict):
        raise NotAnObject("Expected `object`")
    return {name: Raw(encode(value)) for name, value in read.items()}


def decode_text(value: Raw | None) -> str | None:
    """A field's value if it is a string; None if it is anything else, which is not read."""
    if value is None or bytes(memoryview(value)[:1]) != b'"':
        return None
    read = decode(bytes(value))
    return read if isinstance(read, str) else None


def encode(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
