"""What each engine is asked, made from what the client asked.

The prefill leg is there for the KV it leaves behind. So it keeps everything that shapes the prompt (messages, tools,
template arguments, LoRA's model name, cache salt), generates one token, and asks for nothing that costs more. The
decode engine gets the client's own bytes, but for the field that tells it where the KV lies.
"""

import contextlib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain, islice
from typing import Any, Final

import msgspec
import xxhash

from services.proxy.core.codec import NotAnObject, Raw, TooManyFields, decode, decode_fields, decode_text, encode
from services.proxy.core.endpoint import endpoint_of
from services.proxy.core.fleet import Address, Engine, Handover
from services.proxy.core.scheduling import Ask

PARAMS: Final = "kv_transfer_params"
PREFIX_BYTES: Final = 2048  # about 500 tokens: what prompts must share to be sent to one engine
_BYTES_A_TOKEN: Final = 4
_MEDIA_TOKENS: Final = 1_000  # an image's, roughly: from a hundred to many thousands, which only engines know
_GLANCE_BYTES: Final = 64
_PARTS_MAX: Final = 65_536  # of a chat that is longer than
_PARTS_BYTES: Final = 1 << 20
_QUOTES_A_PART: Final = 8
_DROPPED: Final = (
    "stream_options",  # refused without stream
    "min_tokens",  # would contradict max_tokens=1
    # A prefill that ends otherwise than by length hands over nothing: who waits for its KV does so for minutes.
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "repetition_detection",
    "best_of",
    "use_beam_search",
    # They make an engine compute the whole prompt's logits, and vLLM pass over its prefix cache:
    "echo",
    "logprobs",
    "prompt_logprobs",
    "top_logprobs",
    "logprob_token_ids",
)
_ONE: Final = frozenset({b"null", b"1"})
_NOT_SET: Final = frozenset({b"null", b"false"})
_TRUNCATED: Final = "truncate_prompt_tokens"
_SEVERAL: Final = re.compile(rb'\[\s*(?:\{|(?:"[^"\\]*(?:\\.[^"\\]*)*"|\[[^\]]*\])\s*,)', re.DOTALL)
"""A list with a second prompt in it, or with what nobody understands."""
_FORM_MODEL: Final = re.compile(rb'name="?model"?\r\n')
_FORM_VALUE: Final = re.compile(rb"(?:[^\r\n]{1,256}\r\n){0,4}\r\n([^\r\n]{1,256})\r\n")
_FORM_LOOKS: Final = 16  # at what may be a part of that name
_ASK_TO_KEEP: Final = {  # what vLLM's NIXL connector wants to be told; other connectors pass over it
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


Fields = Mapping[str, Raw]
"""A client's request: its fields, as they were written."""


class BadRequest(Exception):
    """The client's request cannot be understood; str() says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def parse_request(content_type: str, body: bytes) -> Fields:
    """The JSON object in a request's body; raises BadRequest where there is none."""
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
    """Whether one engine can be told where another keeps the KV of it: one prompt, one sequence, and a prompt that need
    not be computed anyway, and is the same for both. An engine knows one place for each request; several sequences
    would share it, and all but one decode from what another's prompt left there."""
    if any(_says(request, name, but=_ONE) for name in ("n", "best_of")):
        return False
    if _says(request, "use_beam_search") or _says(request, "prompt_logprobs", but=frozenset({b"null"})):
        return False
    if _says(request, "echo") and (_says(request, "logprobs") or _says(request, "top_logprobs")):
        return False
    if _says(request, _TRUNCATED, but=frozenset({b"null"})) and not bytes(request[_TRUNCATED]).isdigit():
        return False  # -1: to what the engine can take, less what it is to generate perhaps
    prompts = [request[name] for name in ("prompt", "prompt_embeds") if _says(request, name)]
    return len(prompts) < 2 and not any(_SEVERAL.match(prompt) for prompt in prompts)


def _says(request: Fields, name: str, *, but: frozenset[bytes] = _NOT_SET) -> bool:
    """Whether the request sets that field, to something else than the values in `but`."""
    return name in request and (len(memoryview(request[name])) > len(b"false") or bytes(request[name]) not in but)


def ask_of(request: Fields, session: str) -> Ask:
    """What the choice of an engine may go by. A prompt's tokens are estimated: from its bytes, if it is text."""
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
    """What can be read of a request that is the engine's to understand: a JSON object's fields, a form's model."""
    if body.lstrip(b" \t\r\n")[:1] == b"{":
        with contextlib.suppress(ValueError, RecursionError):
            return decode_fields(body)
        return {}
    for name in islice(_FORM_MODEL.finditer(body), _FORM_LOOKS):
        if (found := _FORM_VALUE.match(body, name.end())) is not None:
            return {"model": Raw(encode(found[1].decode(errors="replace")))}
    return {}


def prefill_request(request: Fields, *, chat: bool, handover: Handover | None, transfer_id: str = "") -> dict[str, Any]:
    """The prefill leg's request for a completion, or for a chat completion. Handover None: it is to be found out."""
    leg: dict[str, Any] = {name: value for name, value in request.items() if name not in _DROPPED}
    leg |= {"max_tokens": 1, "stream": False, "ignore_eos": True}
    if chat or "max_completion_tokens" in leg:
        leg["max_completion_tokens"] = 1
    if "n" in leg:
        leg["n"] = 1
    if handover is Handover.PUSH:
        leg[PARAMS] = {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer_id}
    elif handover is not Handover.STORE:
        leg[PARAMS] = _ASK_TO_KEEP
    return leg


def pulled_params(answer: bytes, prefill: Address) -> dict[str, Any] | None:
    """Where the KV lies, as a prefill engine's answer says; None if it does not, or is no JSON object.

    An engine that knows itself by a loopback address only is given the address that the proxy reaches it by.
    """
    try:
        content = decode(answer)
    except (ValueError, RecursionError):
        return None
    params = content.get(PARAMS) if isinstance(content, dict) else None
    if not isinstance(params, dict) or not params:
        return None
    host = endpoint_of(prefill).host
    if "remote_host" in params and _is_loopback(str(params["remote_host"])) and not _is_loopback(host):
        params = params | {"remote_host": host}
    return params


def sends_nothing(answer: bytes) -> bool:
    """Whether a prefill engine that pushes keeps its KV for itself: it ended the answer otherwise than by length."""
    try:
        reasons = {choice.finish_reason for choice in _ended.decode(answer).choices}
    except (ValueError, RecursionError):
        return False
    return not reasons.isdisjoint({"stop", "abort", "error", "repetition"})


def with_params(body: bytes, request: Fields, params: dict[str, Any]) -> bytes:
    """The client's request, told where the KV lies; `request` is what `body` says."""
    if not request or PARAMS in request:
        return encode({**request, PARAMS: params})
    return b'%b,"%b":%b}' % (body[: body.rindex(b"}")], PARAMS.encode(), encode(params))


def pushed_params(transfer_id: str, engine_id: str, bootstrap: str) -> dict[str, Any]:
    """What the decode leg of a pair is told, as vLLM's MooncakeConnector wants it. Bootstrap: http://HOST:PORT."""
    return {
        "do_remote_decode": False,
        "do_remote_prefill": True,
        "transfer_id": transfer_id,
        "remote_engine_id": engine_id,
        "remote_bootstrap_addr": bootstrap,
    }


def bootstrap_of(engine: Engine, port: int) -> str:
    """Where a prefill engine's bootstrap server listens: http://HOST:PORT."""
    return f"http://{endpoint_of(engine.address).beside(port)}"


def transfer_ids(answer: bytes) -> tuple[str, ...]:
    """The engine's ids by data-parallel rank, as a bootstrap server's /query lists them; empty if it is none."""
    try:
        ranks = decode(answer)
        if not isinstance(ranks, dict):
            return ()
        return tuple(str(ranks[rank]["engine_id"]) for rank in sorted(ranks, key=int))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()


class _Part(msgspec.Struct, gc=False):
    text: str | None = None
    refusal: str | None = None
    thinking: str | None = None

    @property
    def words(self) -> str | None:
        return next((text for text in (self.text, self.refusal, self.thinking) if text is not None), None)


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class _Ended(msgspec.Struct, gc=False):
    choices: list[_Choice] = []


class _Message(msgspec.Struct, gc=False):
    content: str | list[str | _Part] | None = None


_ended: Final = msgspec.json.Decoder(_Ended)
_messages: Final = msgspec.json.Decoder(list[_Message])


def _texts(messages: Raw) -> Iterator[str | memoryview | None]:
    """The texts of a chat, in order, and None for an image, a sound or what else is none; all as it was written, where
    that is not what it should be."""
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


@lru_cache(maxsize=1024)
def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _json_type(body: bytes) -> str:
    names = {b"n": "null", b"t": "a boolean", b"f": "a boolean", b'"': "a string", b"[": "an array"}
    return names.get(body.lstrip()[:1], "a number")
