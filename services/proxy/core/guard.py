"""Only the proxy may tell an engine where to fetch KV or embeddings from. Engines connect to wherever such a field
points, so every body that a client sends is inspected here, as the engine will get it.

One list names these fields (`_NAMES`), another where a field of such a name is the client's own data (`_DATA`):
anywhere else it is refused, at any depth, however it is spelt, and whatever the body claims to be. Bodies that cannot
be read here are refused too. Works on bytes: 64 MB of brackets must not become 1.3 GB of lists.
"""

import re
from collections.abc import Sequence
from email.message import Message
from typing import Final
from urllib.parse import unquote_to_bytes

from services.proxy.core.codec import decode_fields
from services.proxy.core.requests import BadRequest

_NAMES: Final = (
    "kv_transfer_params",  # of vLLM: top level, or in vllm_xargs, or in sampling_params.extra_args
    "ec_transfer_params",
    "disaggregated_params",  # of other engines that speak OpenAI's API
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
)
_DATA: Final = frozenset(
    {
        *("messages", "system", "prompt", "input", "instructions", "documents", "query", "queries"),
        *("tools", "functions", "response_format", "structured_outputs", "guided_json", "text", "format"),
        *("metadata", "chat_template_kwargs"),
    }
)
"""Top-level fields in which any name is the user's: schemas, conversations, notes."""

_SIGNS: Final = (b"_transfer_params", b"disaggregated_params", b"bootstrap_", b"\\u00")
_FORMS: Final = frozenset({"multipart/form-data", "application/x-www-form-urlencoded"})
_URLENCODED_BYTES_MAX: Final = 256 << 10  # decoding takes two hundred times as much
_CONTENT_TYPE_MAX: Final = 512  # reading one takes time that grows with the square of its length
_UTF_8: Final = frozenset({"", "utf-8", "utf8", "us-ascii", "ascii"})


def _spelt(name: str) -> str:
    return "".join(rf"(?:{char}|\\u00(?i:{ord(char):02x}))" for char in name)


_ANY: Final = "|".join(map(_spelt, _NAMES))
_KEY: Final = re.compile(rf'"({_ANY})\\*"\s*:\s*(?!\s|null)'.encode())  # in JSON within a string, too
_FORM_FIELD: Final = re.compile(rf"(?:\bname\s*=\s*[\"']?|(?:^|[&;]))({'|'.join(_NAMES)})(?:[\"'=;\r\n]|$)".encode())


def check(body: bytes, content_types: Sequence[str], encodings: Sequence[str]) -> None:
    """Raises BadRequest if the body says what only the proxy may say. The headers are those sent with it."""
    if not body:
        return
    for encoding in encodings:
        if encoding.strip().lower() not in ("", "identity"):
            raise BadRequest(415, f"Content-Encoding {encoding!r}: send the body unencoded, engines take no other")
    if b"\0" in body[:4]:  # UTF-16, UTF-32; or no text at all
        if "json" in "".join(content_types).lower() or not content_types:
            raise BadRequest(400, "the request body is not valid JSON in UTF-8")
        body = body.replace(b"\0", b"")
    is_form = False
    for content_type in content_types:
        kind, charset = _kind_of(content_type)
        if kind in _FORMS:
            is_form = True
            if charset not in _UTF_8:
                raise BadRequest(415, f"a form in {charset!r}: send it in UTF-8")
            if kind.endswith("urlencoded"):
                if len(body) > _URLENCODED_BYTES_MAX:
                    raise BadRequest(413, f"a form over {_URLENCODED_BYTES_MAX} bytes: send it as multipart/form-data")
                body = unquote_to_bytes(body.replace(b"+", b" "))
    if not any(sign in body for sign in _SIGNS):
        return
    found = _KEY.findall(body)
    if is_form and (field := _FORM_FIELD.search(body)):
        raise _refusal(field[1])
    if found and len(found) > _in_data(body):
        raise _refusal(found[0])


def _kind_of(content_type: str) -> tuple[str, str]:
    """Media type and charset, as engines' servers read them."""
    if len(content_type) > _CONTENT_TYPE_MAX:
        raise BadRequest(400, f"a Content-Type over {_CONTENT_TYPE_MAX} characters")
    header = Message()
    header["Content-Type"] = content_type
    return content_type.partition(";")[0].strip().lower(), header.get_content_charset("")


def _in_data(body: bytes) -> int:
    """How many of the names are the user's own data; of a field that is given twice only the last counts."""
    try:
        fields = decode_fields(body)
    except (ValueError, RecursionError):
        return 0
    return sum(len(_KEY.findall(value)) for name, value in fields.items() if name in _DATA)


def _refusal(name: bytes) -> BadRequest:
    plain = re.sub(rb"\\u00(..)", lambda escape: bytes.fromhex(escape[1].decode()), name).decode()
    return BadRequest(400, f"{plain} is between the proxy and its engines: leave it out")
