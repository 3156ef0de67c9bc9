"""What engines are asked, where their answers say that KV lies, and which requests are refused."""

import json
import tracemalloc
from typing import Any

import pytest

from services.proxy.core import legs, requests
from services.proxy.core.codec import Raw, decode_fields, encode
from services.proxy.core.engine import Address, Engine, Handover, Role
from services.proxy.core.legs import prefill_request
from services.proxy.core.requests import BadRequest, ask_of, parse_request
from services.proxy.core.scheduling import Ask


def fields(request: dict[str, Any]) -> requests.Fields:
    return decode_fields(json.dumps(request).encode())


def sent(request: dict[str, Any], **options: Any) -> Any:
    """The prefill leg's request, as its engine reads it."""
    return json.loads(encode(prefill_request(fields(request), **options)))


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
    leg = sent(asked, chat=True, handover=Handover.STORE)
    assert leg == asked | {"max_tokens": 1, "max_completion_tokens": 1, "stream": False, "ignore_eos": True}


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
        "stop": [" the"],
        "stop_token_ids": [5],
        "include_stop_str_in_output": True,
        "repetition_detection": {"max_pattern_size": 1, "min_count": 2},
        "ignore_eos": False,
    }
    before = dict(asked)
    leg = sent(asked, chat=False, handover=Handover.STORE)
    by_length = {"max_tokens": 1, "ignore_eos": True}  # and not by an end token, which would leave no KV behind
    assert leg == by_length | {"model": "tiny", "prompt": [1, 2, 3], "stream": False, "n": 1}
    assert asked == before


@pytest.mark.parametrize(("chat", "given"), [(True, {}), (False, {"max_completion_tokens": 9})])
def test_max_completion_tokens(chat: bool, given: dict[str, Any]) -> None:
    assert sent(given, chat=chat, handover=None)["max_completion_tokens"] == 1
    assert "max_completion_tokens" not in sent({}, chat=False, handover=None)


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


def test_a_prefill_is_asked_to_keep_its_kv_as_each_handover_wants_it() -> None:
    asked = {"prompt": "x"}
    plain = asked | {"max_tokens": 1, "stream": False, "ignore_eos": True}
    assert sent(asked, chat=False, handover=Handover.STORE) == plain
    keep = dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port"))
    for handover in (Handover.PULL, None):
        params = sent(asked, chat=False, handover=handover)["kv_transfer_params"]
        assert params == {"do_remote_decode": True, "do_remote_prefill": False} | keep
    params = sent(asked, chat=False, handover=Handover.PUSH, transfer_id="t")["kv_transfer_params"]
    assert params == {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": "t"}


@pytest.mark.parametrize(
    ("host", "prefill", "told"),
    [
        ("127.0.0.1", "10.0.0.1:8100", "10.0.0.1"),
        ("localhost", "10.0.0.1:8100", "10.0.0.1"),
        ("0.0.0.0", "10.0.0.1:8100", "10.0.0.1"),  # noqa: S104
        ("::1", "[fd00::7]:8100", "fd00::7"),
        ("10.0.0.9", "10.0.0.1:8100", "10.0.0.9"),
        ("127.0.0.1", "localhost:8100", "127.0.0.1"),
        ("prefill-0.svc", "10.0.0.1:8100", "prefill-0.svc"),
    ],
)
def test_a_prefill_that_knows_only_its_loopback_address_is_given_the_proxys_for_it(
    host: str, prefill: str, told: str
) -> None:
    answer = b'{"kv_transfer_params": {"remote_host": "%b", "remote_block_ids": [[1, 2]]}}' % host.encode()
    assert legs.pulled_params(answer, Address(prefill)) == {"remote_host": told, "remote_block_ids": [[1, 2]]}


@pytest.mark.parametrize(
    "answer", [b"", b"{", b"[]", b"{}", b'{"kv_transfer_params": null}', b'{"kv_transfer_params": {}}', b"[" * 200_000]
)
def test_answers_that_do_not_say_where_the_kv_lies(answer: bytes) -> None:
    assert legs.pulled_params(answer, Address("p:1")) is None


@pytest.mark.parametrize(
    ("answer", "nothing"),
    [
        (b'{"choices": [{"finish_reason": "stop", "text": "x"}]}', True),
        (b'{"choices": [{"finish_reason": "abort"}]}', True),
        (b'{"choices": [{"finish_reason": "length"}]}', False),
        (b'{"choices": [{"finish_reason": "tool_calls"}]}', False),
        (b'{"choices": [{}]}', False),
        (b"{}", False),
        (b"[", False),
    ],
)
def test_a_prefill_that_ends_other_than_by_length_sends_nothing(answer: bytes, nothing: bool) -> None:
    assert legs.sends_nothing(answer) is nothing


@pytest.mark.parametrize(
    ("answer", "ids"),
    [
        (b'{"1": {"engine_id": "b"}, "0": {"engine_id": "a", "worker_addr": {}}, "10": {"engine_id": "c"}}', "abc"),
        (b"{}", ""),
        (b"[]", ""),
        (b'{"x": {"engine_id": "a"}}', ""),
        (b'{"0": {}}', ""),
        (b'{"0": "a"}', ""),
        (b"[1]", ""),
        (b"[1e999]", ""),
        (b"<html>", ""),
    ],
)
def test_a_bootstrap_server_lists_its_engines_by_rank(answer: bytes, ids: str) -> None:
    assert legs.transfer_ids(answer) == tuple(ids)
    assert legs.bootstrap_of(Engine(Role.PREFILL, Address("[::1]:8100")), 8998) == "http://[::1]:8998"


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


def ask(request: Any) -> Ask:
    return ask_of(fields(request), "s-1")


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
