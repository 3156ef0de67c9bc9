"""Streams of events by themselves: where they are cut, and what an error in one says, in each known form."""

import json
import random
from typing import Any

import pytest

from services.proxy.core.events import (
    HELD_BYTES_MAX,
    Events,
    Form,
    error_body,
    error_event,
    failure_of,
    first_event,
    form_of,
    is_stream,
)


@pytest.mark.parametrize(
    ("events", "first"),
    [
        (b"data: 1\n\ndata: 2\n\n", (b"", b"1")),
        (b"data:1\r\n\r\n", (b"", b"1")),
        (b"data: 1\r\rdata: 2\r\r", (b"", b"1")),
        (b": ping\n\nevent: x\ndata: 1\n\n", (b"x", b"1")),
        (b"event: ping\n\ndata: 1\n\n", (b"", b"1")),
        (b"data: 1\ndata: 2\n\n", (b"", b"1\n2")),
        (b"\n\n\ndata: 1\n\n", (b"", b"1")),
        (b"data: 1\n", None),
        (b"data: 1\n ", None),
        (b"data: 1", None),
        (b": ping\n\n", None),
        (b"", None),
    ],
)
def test_the_first_event_that_has_data(events: bytes, first: tuple[bytes, bytes] | None) -> None:
    assert first_event(events) == first


def of(data: Any, name: str = "") -> tuple[int, str] | None:
    """Status and message of a stream that begins with it."""
    head = f"event: {name}\n" if name else ""
    failure = failure_of(f"{head}data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode())
    return None if failure is None else (failure.status, failure.message)


def test_a_first_event_that_is_an_error() -> None:
    event = b'data: {"error": {"message": "KV load failed", "code": 500}}\n\n'
    failure = (500, "KV load failed", b'{"error": {"message": "KV load failed", "code": 500}}')
    assert failure_of(event) == failure
    assert failure_of(event + b"data: [DONE]\n\n") == failure  # in one piece, as vLLM ends it
    assert failure_of(b": ping\n\n" + event) == failure
    assert failure_of(b'data: {"choices": []}\n\n' + event) is None


@pytest.mark.parametrize(
    "data",
    [
        '{"error": null}',
        '["error"]',
        '"error"',
        '{"choices": "\\"error\\""}',
        '"error',
        '{"type": "response.created", "response": {"error": null}}',
    ],
)
def test_a_first_event_that_is_not_an_error(data: str) -> None:
    assert of(data) is None


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 400}, 400),
        ({"code": "400"}, 400),
        ({"code": 400.0}, 400),
        ({"code": "503", "type": "invalid_request_error"}, 503),
        ({"status": 404}, 404),
        ({"code": 200, "type": "NotFoundError"}, 404),
        ({"code": None, "type": "BadRequestError"}, 400),
        ({"type": "invalid_request_error"}, 400),
        ({"type": "authentication_error"}, 401),
        ({"type": "permission_error"}, 403),
        ({"type": "not_found_error"}, 404),
        ({"type": "request_too_large"}, 413),
        ({"type": "rate_limit_error"}, 429),
        ({"type": "requests", "code": "rate_limit_exceeded"}, 429),
        ({"type": "overloaded_error"}, 529),
        ({"type": "api_error"}, 500),
        ({"type": "internal_error"}, 500),
        ({"type": "InternalServerError"}, 500),
        ({"type": "ServiceUnavailableError"}, 503),
        ({"type": "timeout_error"}, 504),
        ({"code": "context_length_exceeded"}, 400),
        ({"code": True}, 500),
        ({"code": "9" * 5000}, 500),
        ({}, 500),
    ],
)
def test_an_error_has_its_own_status_in_every_form(error: dict[str, Any], status: int) -> None:
    said = error | {"message": "boom"}
    assert of({"error": said}) == (status, "boom")
    assert of({"type": "error", "error": said}, "error") == (status, "boom")
    assert of({"type": "response.failed", "response": {"error": said}}) == (status, "boom")
    assert of({"object": "error"} | said) == (status, "boom")
    if "type" not in error:
        assert of({"type": "error"} | said) == (status, "boom")


def test_an_error_that_is_only_a_text() -> None:
    assert of({"error": "boom", "code": 422}) == (422, "boom")
    assert of("boom", "error") == (500, "boom")
    failure = failure_of(b"event: error\ndata: boom\n\n")
    assert failure is not None
    assert json.loads(failure.body) == {"error": {"message": "boom"}}


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_a_stream_is_cut_where_its_events_end(newline: str, size: int) -> None:
    lines = ["event: a", "data: 1", "", ": ping", "", "data: 2", "data: 3", "", ""]
    content = "".join(line + newline for line in lines).encode()
    end = len(content)
    content += b"data: {"
    events, passed = Events(), b""
    for at in range(0, len(content), size):
        passed += events.feed(content[at : at + size])
        assert not events.is_torn
        assert not passed or passed.endswith((b"\n", b"\r"))
    assert content[: len(passed)] == passed
    assert end - len(newline) <= len(passed) <= end  # the final empty line belongs to no event
    assert passed + events.held == content


def test_little_is_held_of_an_endless_event() -> None:
    events, draw = Events(), random.Random(1)
    content, passed = b"data: 1\n\ndata: " + b"x" * (3 * HELD_BYTES_MAX), b""
    rest = content
    while rest:
        size = draw.randrange(1, 100_000)
        passed, rest = passed + events.feed(rest[:size]), rest[size:]
        assert len(events.held) <= HELD_BYTES_MAX
    assert events.is_torn
    assert passed + events.held == content
    assert events.feed(b"\n") + events.feed(b"\ndata: 2\n\ndata") == content[len(passed) :] + b"\n\ndata: 2\n\n"
    assert not events.is_torn


def test_each_path_has_its_form() -> None:
    assert form_of("/v1/chat/completions") is form_of("/v1/completions/") is Form.OPENAI
    assert form_of("/v1/messages") is form_of("/v1/messages/count_tokens") is Form.ANTHROPIC
    assert form_of("/v1/responses") is form_of("/v1/responses/resp_1") is Form.RESPONSES
    assert form_of("/v1/elsewhere") is form_of("/v1/messages2") is form_of("/") is None


def test_an_error_is_written_in_its_form() -> None:
    assert error_event(Form.OPENAI, 502, "gone").startswith(b'data: {"error":')
    name, data = first_event(error_event(Form.ANTHROPIC, 429, "gone")) or (b"", b"")
    assert (name, json.loads(data)) == (
        b"error",
        {"type": "error", "error": {"type": "rate_limit_error", "message": "gone", "code": 429}},
    )
    assert error_body(Form.ANTHROPIC, 418, "gone")["error"]["type"] == "invalid_request_error"
    assert error_body(Form.ANTHROPIC, 502, "gone")["error"]["type"] == "api_error"
    before = b'data: {"type":"a","sequence_number":7}\n\ndata: {"sequence_number": 8}\n\n'
    name, data = first_event(error_event(Form.RESPONSES, 502, "gone", before)) or (b"", b"")
    said = json.loads(data)
    assert (name, said["type"], said["message"], said["sequence_number"]) == (b"error", "error", "gone", 9)
    assert said["error"]["code"] == 502


@pytest.mark.parametrize(
    ("headers", "is_one"),
    [
        ({"Content-Type": "text/event-stream; charset=utf-8"}, True),
        ({"Content-Type": "Text/Event-Stream", "Content-Encoding": "identity"}, True),
        ({"Content-Type": "text/event-stream", "Content-Encoding": "gzip"}, False),
        ({"Content-Type": "application/json"}, False),
        ({}, False),
    ],
)
def test_which_streams_can_be_read_as_events(headers: dict[str, str], is_one: bool) -> None:
    assert is_stream(headers) is is_one
