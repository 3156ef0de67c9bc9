"""What a client's request is understood to ask, what engines are chosen by, and which bodies are refused."""

import json
import tracemalloc
from typing import Any

import pytest

from services.proxy.core import requests
from services.proxy.core.codec import Raw, decode_fields, encode
from services.proxy.core.legs import prefill_request
from services.proxy.core.requests import BadRequest, ask_of, parse_request
from services.proxy.core.scheduling import Ask


def fields(request: dict[str, Any]) -> requests.Fields:
    return decode_fields(json.dumps(request).encode())


def ask(request: Any) -> Ask:
    return ask_of(fields(request), "s-1")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"\xff": 1}', "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
        (b'{"a":' + b"[" * 200_000, "not valid JSON"),
        (b"[" * 200_000, "not an array"),
        (b"1" * 5_000, "not a number"),
        (b'{"a": NaN,' + b" " * (1 << 20) + b"}", "not valid JSON"),
        (b"null", "must be a JSON object, not null"),
        (b"true", "not a boolean"),
        (b"[1]", "not an array"),
        (b'"text"', "not a string"),
        (b"1.5", "not a number"),
    ],
)
def test_bodies_that_are_not_an_object_are_refused(body: bytes, reason: str) -> None:
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


def test_numbers_that_engines_accept_are_not_refused() -> None:
    assert parse_request("application/json", b'{"a": NaN}') == {"a": Raw(b"null")}


def test_a_request_is_streamed_if_it_says_true() -> None:
    assert requests.is_streamed(fields({"stream": True}))
    for other in ({}, {"stream": False}, {"stream": None}, {"stream": "true"}, {"stream": 1}):
        assert not requests.is_streamed(fields(other))


@pytest.mark.parametrize(
    "one",
    [
        {},
        {"prompt": "a"},
        {"prompt": '"a", "b"'},
        {"prompt": [1, 2, 3]},
        {"prompt": ["a"]},
        {"prompt": ['a", "b\\']},
        {"prompt": [[1, 2, 3]]},
        {"prompt": []},
        {"prompt": None, "prompt_embeds": "AAAA"},
        {"prompt_embeds": ["AAAA"]},
        {"n": 1, "best_of": 1, "use_beam_search": False},
        {"n": None, "best_of": None, "use_beam_search": None, "prompt_logprobs": None},
        {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
        {"echo": True},
        {"logprobs": 5, "top_logprobs": 2, "echo": False},
        {"prompt": "a", "truncate_prompt_tokens": 100},
        {"prompt": "a", "truncate_prompt_tokens": None},
    ],
)
def test_one_sequence_of_one_prompt_is_handed_over(one: dict[str, Any]) -> None:
    assert ask(one).handed_over


@pytest.mark.parametrize(
    "several",
    [
        {"prompt": ["a", "b"]},
        {"prompt": ["a" * 100, "b", "c"]},
        {"prompt": ['\\"', "b"]},
        {"prompt": [[1, 2], [3]]},
        {"prompt": [[], []]},
        {"prompt": [{"prompt": "a"}]},  # not understood
        {"prompt_embeds": ["AAAA", "AAAA"]},
        {"prompt": "a", "prompt_embeds": "AAAA"},
        {"n": 3},
        {"n": "3"},
        {"best_of": 2},
        {"use_beam_search": True},
        {"messages": [], "n": 2},
        {"prompt_logprobs": 0},  # the engine computes the prompt anyway, and fetches nothing
        {"echo": True, "logprobs": 0},
        {"echo": True, "top_logprobs": 3},
        {"prompt": "a", "truncate_prompt_tokens": -1},  # each engine would truncate it differently
        {"messages": [], "truncate_prompt_tokens": "-1"},
    ],
)
def test_several_sequences_are_not_handed_over(several: dict[str, Any]) -> None:
    assert not ask(several).handed_over
    spaced = json.dumps(several, indent=2).encode()
    assert not ask_of(decode_fields(spaced), "").handed_over


def test_what_engines_are_chosen_by() -> None:
    assert ask({"prompt": "x" * 41}).prompt_tokens == 11
    assert ask({"prompt": [1, 2, 3]}).prompt_tokens == 3
    assert ask({"prompt": [[1, 2, 3], [4]]}).prompt_tokens == 4
    assert ask({"prompt": ["x" * 200, "y" * 200]}).prompt_tokens == 102
    content = [{"type": "text", "text": "x" * 40}, {"type": "image_url", "image_url": {"url": "z" * 999}}, "w" * 40]
    messages = [{"role": "system", "content": "y" * 40}, {"role": "user", "content": content}, {"role": "tool"}]
    assert ask({"messages": messages}).prompt_tokens == 1030
    sound = {"type": "input_audio", "input_audio": {"data": "z" * 999}}
    messages = [{"content": [sound, sound, {"type": "refusal", "refusal": "x" * 40}, {"type": "text", "text": ""}]}]
    assert (ask({"messages": messages}).prompt_tokens, ask({"messages": messages}).has_media) == (2010, True)
    assert (ask({"prompt_embeds": "z" * 999}).prompt_tokens, ask({"prompt_embeds": "z"}).has_media) == (1000, True)
    assert not ask({"messages": [{"content": [{"type": "text", "text": "image_url"}]}]}).has_media
    assert ask({"messages": []}).prompt_tokens == ask({}).prompt_tokens == 0
    assert ask({"messages": [7, "x" * 395]}).prompt_tokens == 101  # not understood, so estimated from its bytes
    assert ask({"messages": [{}] * 300_000}).prompt_tokens == 300_000  # too many to look at each
    assert ask({"messages": [{"content": [""] * 500_000}]}).prompt_tokens == 500_004  # nor these
    assert ask({}).session == "s-1"


def test_prompts_that_begin_alike_have_one_prefix() -> None:
    def prefix(**request: Any) -> int:
        return ask({"model": "tiny"} | request).prefix

    head = "x" * requests.PREFIX_BYTES
    assert prefix(prompt=head + "a") == prefix(prompt=head + "b") != prefix(prompt=head[2:] + "a")
    system = {"role": "system", "content": head}
    assert prefix(messages=[system, {"content": "a"}]) == prefix(messages=[system, {"content": "b"}])
    tokens = list(range(1000, 1400))
    assert prefix(prompt=[*tokens, 1]) == prefix(prompt=[*tokens, 2]) != prefix(prompt=[7, *tokens])
    assert prefix(prompt=head) != prefix(prompt=head, model="other")  # adapters share no KV
    assert prefix(prompt="a") != prefix(prompt="b")
    prefix(prompt="\ud800", model="\ud800", messages=[{"content": "\ud800"}])


def test_unneeded_fields_are_not_read() -> None:
    """A body of nested lists would take twenty times its size in memory, and hold up all others."""
    body = b'{"prompt": "x", "a": [' + b"[]," * 5_000_000 + b"1]}"
    tracemalloc.start()
    try:
        request = parse_request("application/json", body)
        ask_of(request, "")
        leg = encode(prefill_request(request, chat=False, handover=None))
        assert len(leg) > len(body)
        assert tracemalloc.get_traced_memory()[1] < 5 * len(body)
    finally:
        tracemalloc.stop()
