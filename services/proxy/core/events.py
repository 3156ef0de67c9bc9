"""Streams of server-sent events: where an event ends, which ones are errors, and how each protocol reports a failure.

A stream that breaks off must look broken to its client. So the proxy's last word has the form in which that protocol's
clients expect an error, and never follows half an event: the blank line after it would complete that event, with
contents that no engine meant.
"""

import re
from collections.abc import Mapping
from enum import Enum
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from services.proxy.core.codec import decode, encode

HELD_BYTES_MAX: Final = 256 << 10  # of an event that is not whole yet
_BLANK_LINE: Final = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
_ACROSS: Final = 3  # bytes of a blank line that may have come before its last one
_SEQUENCE: Final = re.compile(rb'"sequence_number":\s*(\d+)')


class Form(Enum):
    """How errors are worded."""

    OPENAI = "openai"
    RESPONSES = "responses"
    ANTHROPIC = "anthropic"


_FORMS: Final = {
    "/v1/completions": Form.OPENAI,
    "/v1/chat/completions": Form.OPENAI,
    "/v1/audio/transcriptions": Form.OPENAI,
    "/v1/audio/translations": Form.OPENAI,
    "/v1/responses": Form.RESPONSES,
    "/v1/messages": Form.ANTHROPIC,
}


def form_of(path: str) -> Form | None:
    """None: not known, so nothing that the proxy could say would surely be understood."""
    path = path.rstrip("/")
    if path.startswith(("/v1/messages/", "/v1/responses/")):
        path = path[: path.index("/", 4)]
    return _FORMS.get(path)


def error_body(form: Form | None, status: int, message: str) -> dict[str, Any]:
    """What the proxy itself answers with that status: in OpenAI's form, unless the path has another."""
    if form is Form.ANTHROPIC:
        return {"type": "error", "error": {"type": _anthropic_type(status), "message": message, "code": status}}
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def error_event(form: Form, status: int, message: str, before: bytes = b"") -> bytes:
    """The event that ends a broken stream. Before: what was sent last."""
    body = error_body(form, status, message)
    if form is Form.RESPONSES:  # its event has the fields at the top, but its client raises on `error`
        numbers = _SEQUENCE.findall(before)
        said = {"type": "error", "code": body["error"]["type"], "message": message, "param": None}
        body = said | {"sequence_number": int(numbers[-1]) + 1 if numbers else 0} | body
    name = b"" if form is Form.OPENAI else b"event: error\n"
    return b"%bdata: %b\n\n" % (name, encode(body))


def is_stream(headers: Mapping[str, str]) -> bool:
    """Whether they announce a stream of events that can be read."""
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind == "text/event-stream" and headers.get("Content-Encoding", "identity").strip().lower() == "identity"


class Events:
    """Cuts a stream where its events end: an unfinished one is held back, up to HELD_BYTES_MAX."""

    __slots__ = ("held", "is_torn", "last")

    def __init__(self) -> None:
        self.held = b""
        self.is_torn = False  # what was passed on ends within an event
        self.last = b""  # what was passed on last

    def feed(self, chunk: bytes) -> bytes:
        """More of the stream; returns what can be passed on."""
        if chunk.endswith(b"\n\n") and not self.held and not self.is_torn:
            self.last = chunk
            return chunk
        content = self.held + chunk
        ends = [found.end() for found in _BLANK_LINE.finditer(content, max(0, len(self.held) - _ACROSS))]
        end = ends[-1] if ends else 0
        if end:
            self.is_torn = False
        elif self.is_torn or len(content) > HELD_BYTES_MAX:
            self.is_torn, end = True, max(0, len(content) - _ACROSS)
        passed, self.held = content[:end], content[end:]
        self.last = passed or self.last
        return passed


_LAST: Final = {
    Form.OPENAI: re.compile(rb'\[DONE\]|"finish_reason":\s*"|"error":'),
    Form.RESPONSES: re.compile(rb"response\.(?:completed|failed|incomplete|cancelled)|event: *error"),
    Form.ANTHROPIC: re.compile(rb"message_stop|event: *error"),
}


def is_last(form: Form, events: bytes) -> bool:
    """Whether a stream that ends with these events is complete."""
    return _LAST[form].search(events) is not None


class Failure(NamedTuple):
    """What an error event says."""

    status: int
    message: str
    body: bytes  # the event's data


def first_event(events: bytes) -> tuple[bytes, bytes] | None:
    """Name and data of the first event that has data; None if it is not complete."""
    name, data = b"", list[bytes]()
    for line in events.splitlines(keepends=True):
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif line.startswith(b"event:"):
            name = line[6:].strip()
        elif not line.strip():
            if data and line.endswith((b"\n", b"\r")):
                return name, b"\n".join(data)
            name = b""
    return None


def failure_of(events: bytes) -> Failure | None:
    """What the first event of a stream says if it is an error; None if it is not."""
    if b"error" not in events or (first := first_event(events)) is None:
        return None
    name, data = first
    try:
        content = decode(data)
    except (ValueError, RecursionError):
        content = data.decode(errors="replace")
    fields = content if isinstance(content, dict) else {}
    error = fields.get("error")
    if error is None and fields.get("type") == "response.failed" and isinstance(fields.get("response"), dict):
        error = fields["response"].get("error")
    if error is None and (name == b"error" or "error" in (fields.get("type"), fields.get("object"))):
        error = content
    if not error or not isinstance(error, dict | str):
        return None
    said = {"message": error} if isinstance(error, str) else error
    body = data if fields else encode({"error": said})
    return Failure(_status_of(said, fields), str(said.get("message")), body)


def _status_of(error: dict[str, Any], around: dict[str, Any]) -> int:
    """By number if there is one, else by name; 500 if there is neither, since nobody knows whose fault it is."""
    for fields in (error, around):
        for name in ("code", "status", "status_code"):
            if (status := _number(fields.get(name))) is not None:
                return status
    for value in (error.get("type"), error.get("code")):
        if isinstance(value, str) and (named := _STATUSES.get(_plain(value))) is not None:
            return named
    return 500


def _number(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value) if len(value) < 9 else 0
    return int(value) if isinstance(value, int | float) and 400 <= value < 600 else None


def _plain(name: str) -> str:
    """Makes rate_limit_error, RateLimitError and "Rate Limit" the same."""
    return re.sub(r"[^a-z]", "", name.lower()).removesuffix("error")


_ANTHROPIC: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def _anthropic_type(status: int) -> str:
    return _ANTHROPIC.get(status, "invalid_request_error" if status < 500 else "api_error")


_STATUSES: Final = {
    **{_plain(status.phrase): status.value for status in HTTPStatus if status >= 400},
    **{_plain(name): status for status, name in _ANTHROPIC.items()},
    # OpenAI's and vLLM's own
    "permissiondenied": 403,
    "modelnotfound": 404,
    "invalidapikey": 401,
    "contextlengthexceeded": 400,
    "invalidprompt": 400,
    "validation": 400,
    "ratelimitexceeded": 429,
    "insufficientquota": 429,
    "server": 500,
    "internal": 500,
    "engineoverloaded": 503,
    "unavailable": 503,
    "apitimeout": 504,
}
