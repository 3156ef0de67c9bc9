"""What the prefill engine is asked, and which requests are refused."""

from typing import Any

import pytest

from services.proxy.core.legs import BadRequest, parse_request, prefill_request


def test_everything_that_shapes_the_prompt_is_kept() -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "é"}],
        "tools": [{"type": "function"}],
        "tool_choice": "auto",
        "chat_template_kwargs": {"a": 1},
        "cache_salt": "s",
        "temperature": 0.7,
        "unheard_of": {"b": [1.5, None]},
    }
    leg = prefill_request(asked, chat=True)
    assert leg == asked | {"max_tokens": 1, "max_completion_tokens": 1, "stream": False}


def test_one_token_and_nothing_that_costs_more() -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "prompt": [1, 2, 3],
        "max_tokens": 500,
        "min_tokens": 10,
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 4,
        "best_of": 8,
        "use_beam_search": True,
        "echo": True,
        "logprobs": 5,
        "prompt_logprobs": 2,
        "top_logprobs": 5,
        "logprob_token_ids": [1],
    }
    before = dict(asked)
    leg = prefill_request(asked, chat=False)
    assert leg == {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 1, "stream": False, "n": 1}
    assert asked == before


@pytest.mark.parametrize(("chat", "given", "sent"), [(True, {}, 1), (False, {"max_completion_tokens": 9}, 1)])
def test_max_completion_tokens(chat: bool, given: dict[str, Any], sent: int) -> None:
    assert prefill_request(given, chat=chat)["max_completion_tokens"] == sent
    assert "max_completion_tokens" not in prefill_request({}, chat=False)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'"\xff"', "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b"1" * 5_000, "not valid JSON"),
        (b"null", "must be a JSON object, not null"),
        (b"true", "not a boolean"),
        (b"[1]", "not an array"),
        (b'"text"', "not a string"),
        (b"1.5", "not a number"),
    ],
)
def test_bodies_that_are_no_object_are_refused(body: bytes, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason) as refusal:
        parse_request("application/json", body)
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/octet-stream", "application/x-www-form-urlencoded"]
)
def test_other_content_types_are_refused(content_type: str) -> None:
    with pytest.raises(BadRequest, match="Unsupported Media Type: Only 'application/json' is allowed") as refusal:
        parse_request(content_type, b"{}")
    assert refusal.value.status == 415
