"""What a client asks, as far as the proxy has to understand it: its fields, unread, and what engines are chosen by."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Final

import msgspec
import xxhash

from services.proxy.core.codec import NotAnObject, Raw, TooManyFields, decode_fields, decode_text, encode
from services.proxy.core.scheduling import Ask

PREFIX_BYTES: Final = 2048  # about 500 tokens: what prompts must share to go to the same engine
_BYTES_A_TOKEN: Final = 4
_MEDIA_TOKENS: Final = 1_000  # an image's, roughly: only engines know, from a hundred to many thousands
_GLANCE_BYTES: Final = 64
_PARTS_MAX: Final = 65_536  # in a chat of more than
_PARTS_BYTES: Final = 1 << 20
_QUOTES_A_PART: Final = 8
_ONE: Final = frozenset({b"null", b"1"})
_NOT_SET: Final = frozenset({b"null", b"false"})
_TRUNCATED: Final = "truncate_prompt_tokens"
_SEVERAL: Final = re.compile(rb'\[\s*(?:\{|(?:"[^"\\]*(?:\\.[^"\\]*)*"|\[[^\]]*\])\s*,)', re.DOTALL)
"""A list with a second prompt in it, or with something nobody understands."""
_FORM_MODEL: Final = re.compile(rb'name="?model"?\r\n')
_FORM_VALUE: Final = re.compile(rb"(?:[^\r\n]{1,256}\r\n){0,4}\r\n([^\r\n]{1,256})\r\n")
_FORM_LOOKS: Final = 16  # at what may be a part of that name

Fields = Mapping[str, Raw]
"""A client's request: its fields, as they were written."""


class BadRequest(Exception):
    """The client's request cannot be understood, or not served. str() says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def parse_request(content_type: str, body: bytes) -> Fields:
    """The JSON object in a request's body; raises BadRequest if there is none."""
    if content_type != "application/json":
        raise BadRequest(415, "Unsupported Media Type: Only 'application/json' is allowed")
    try:
        request = decode_fields(body)
    except NotAnObject as error:
        raise BadRequest(400, f"the request body must be a JSON object, not {_json_type(body)}") from error
    except TooManyFields as error:
        raise BadRequest(400, f"the request body has {error}") from error
    except (ValueError, RecursionError) as error:  # not JSON, 100,000 brackets
        raise BadRequest(400, f"the request body is not valid JSON: {error}") from error
    return request


def is_streamed(request: Fields) -> bool:
    return "stream" in request and bytes(request["stream"]) == b"true"


def is_handed_over(request: Fields) -> bool:
    """Whether one engine can be told where another keeps its KV: it has one prompt and one sequence, and the prompt
    need not be computed anyway, and is the same for both. An engine knows one place for each request; several sequences
    would share it, and all but one would decode from what another's prompt left there."""
    if any(_says(request, name, but=_ONE) for name in ("n", "best_of")):
        return False
    if _says(request, "use_beam_search") or _says(request, "prompt_logprobs", but=frozenset({b"null"})):
        return False
    if _says(request, "echo") and (_says(request, "logprobs") or _says(request, "top_logprobs")):
        return False
    if _says(request, _TRUNCATED, but=frozenset({b"null"})) and not bytes(request[_TRUNCATED]).isdigit():
        return False  # -1: to what the engine can take, perhaps less what it is to generate
    prompts = [request[name] for name in ("prompt", "prompt_embeds") if _says(request, name)]
    return len(prompts) < 2 and not any(_SEVERAL.match(prompt) for prompt in prompts)


def _says(request: Fields, name: str, *, but: frozenset[bytes] = _NOT_SET) -> bool:
    """Whether the request sets that field to anything but the values in `but`."""
    return name in request and (len(memoryview(request[name])) > len(b"false") or bytes(request[name]) not in but)


def ask_of(request: Fields, session: str) -> Ask:
    """What engines are chosen by. A prompt's tokens are estimated: from its bytes, if it is text."""
    digest, size, tokens = xxhash.xxh3_64(request.get("model", b"")), 0, 0
    prompt = memoryview(request.get("prompt", b""))
    if bytes(prompt[:1]) == b"[" and b'"' not in bytes(prompt[:_GLANCE_BYTES]):
        tokens = bytes(prompt).count(b",") + 1
        digest.update(prompt[:PREFIX_BYTES])
    texts: Iterable[str | memoryview | None] = () if tokens else (prompt[1:-1],)
    if "messages" in request:
        texts = chain(texts, _texts(request["messages"]))
    media = int("prompt_embeds" in request)
    for text in texts:
        if text is None:
            media += 1
            continue
        if (room := PREFIX_BYTES - size) > 0:
            part = text[:room]
            digest.update(part.encode(errors="surrogatepass") if isinstance(part, str) else part)
        size += len(text)
    estimated = tokens + -(-size // _BYTES_A_TOKEN) + media * _MEDIA_TOKENS
    return Ask(
        estimated,
        digest.intdigest(),
        session,
        has_media=media > 0,
        model=model_of(request),
        handed_over=is_handed_over(request),
    )


def model_of(request: Fields) -> str:
    """The model that a request names; empty if it names none."""
    return decode_text(request.get("model")) or ""


def fields_of(body: bytes) -> Fields:
    """What can be read of a request that only the engine understands: a JSON object's fields, a form's model."""
    if body.lstrip(b" \t\r\n")[:1] == b"{":
        with contextlib.suppress(ValueError, RecursionError):
            return decode_fields(body)
        return {}
    for name in islice(_FORM_MODEL.finditer(body), _FORM_LOOKS):
        if (found := _FORM_VALUE.match(body, name.end())) is not None:
            return {"model": Raw(encode(found[1].decode(errors="replace")))}
    return {}


class _Part(msgspec.Struct, gc=False):
    text: str | None = None
    refusal: str | None = None
    thinking: str | None = None

    @property
    def words(self) -> str | None:
        return next((text for text in (self.text, self.refusal, self.thinking) if text is not None), None)


class _Message(msgspec.Struct, gc=False):
    content: str | list[str | _Part] | None = None


def _texts(messages: Raw) -> Iterator[str | memoryview | None]:
    """The texts of a chat, in order, and None for an image, a sound or anything else; if it is not a proper chat, all
    of it as written."""
    written = memoryview(messages)
    try:
        if len(written) > _PARTS_BYTES and _may_have_many_parts(bytes(written)):
            raise ValueError("too many parts to look at each")
        read = _messages.decode(messages)
    except (ValueError, RecursionError):
        yield written
        return
    for message in read:
        parts = message.content
        for part in [parts] if isinstance(parts, str) else parts or ():
            yield part if isinstance(part, str) else part.words


def _may_have_many_parts(messages: bytes) -> bool:
    quotes = messages.count(b'"') - messages.count(b'\\"')
    return messages.count(b"{") > _PARTS_MAX or quotes > _PARTS_MAX * _QUOTES_A_PART


def _json_type(body: bytes) -> str:
    names = {b"n": "null", b"t": "a boolean", b"f": "a boolean", b'"': "a string", b"[": "an array"}
    return names.get(body.lstrip()[:1], "a number")


_messages: Final = msgspec.json.Decoder(list[_Message])
