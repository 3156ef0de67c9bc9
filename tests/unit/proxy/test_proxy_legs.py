"""What the engines are asked, what their answers say of where KV lies, and which requests are refused."""

from typing import Any

import pytest

from services.proxy.core import legs
from services.proxy.core.fleet import Address, Engine, Handover, Role
from services.proxy.core.legs import BadRequest, ask_of, error_of, first_data, parse_request, prefill_request


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
    leg = prefill_request(asked, chat=True, handover=Handover.STORE)
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
    leg = prefill_request(asked, chat=False, handover=Handover.STORE)
    assert leg == {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 1, "stream": False, "n": 1}
    assert asked == before


@pytest.mark.parametrize(("chat", "given", "sent"), [(True, {}, 1), (False, {"max_completion_tokens": 9}, 1)])
def test_max_completion_tokens(chat: bool, given: dict[str, Any], sent: int) -> None:
    assert prefill_request(given, chat=chat, handover=None)["max_completion_tokens"] == sent
    assert "max_completion_tokens" not in prefill_request({}, chat=False, handover=None)


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


def test_a_client_may_not_say_where_kv_is_fetched_from() -> None:
    with pytest.raises(BadRequest, match="leave it out") as refusal:
        parse_request("application/json", b'{"kv_transfer_params": {"remote_host": "10.0.0.1"}}')
    assert refusal.value.status == 400
    assert parse_request("application/json", b'{"kv_transfer_params": null}') == {"kv_transfer_params": None}


def test_a_prefill_is_asked_to_keep_its_kv_as_each_handover_wants_it() -> None:
    asked = {"prompt": "x"}
    plain = asked | {"max_tokens": 1, "stream": False}
    assert prefill_request(asked, chat=False, handover=Handover.STORE) == plain
    keep = dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port"))
    for handover in (Handover.PULL, None):
        params = prefill_request(asked, chat=False, handover=handover)["kv_transfer_params"]
        assert params == {"do_remote_decode": True, "do_remote_prefill": False} | keep
    params = prefill_request(asked, chat=False, handover=Handover.PUSH, transfer_id="t")["kv_transfer_params"]
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
def test_a_prefill_that_knows_itself_by_a_loopback_address_only_is_given_the_proxys(
    host: str, prefill: str, told: str
) -> None:
    answer = b'{"kv_transfer_params": {"remote_host": "%b", "remote_block_ids": [[1, 2]]}}' % host.encode()
    assert legs.pulled_params(answer, Address(prefill)) == {"remote_host": told, "remote_block_ids": [[1, 2]]}


@pytest.mark.parametrize(
    "answer", [b"", b"{", b"[]", b"{}", b'{"kv_transfer_params": null}', b'{"kv_transfer_params": {}}', b"[" * 200_000]
)
def test_answers_that_say_nothing_of_where_the_kv_lies(answer: bytes) -> None:
    assert legs.pulled_params(answer, Address("p:1")) is None


@pytest.mark.parametrize(
    ("answer", "ids"),
    [
        (b'{"1": {"engine_id": "b"}, "0": {"engine_id": "a", "worker_addr": {}}, "10": {"engine_id": "c"}}', "abc"),
        (b"{}", ""),
        (b"[]", ""),
        (b'{"x": {"engine_id": "a"}}', ""),
        (b'{"0": {}}', ""),
        (b'{"0": "a"}', ""),
        (b"<html>", ""),
    ],
)
def test_a_bootstrap_server_lists_its_engines_by_rank(answer: bytes, ids: str) -> None:
    assert legs.transfer_ids(answer) == tuple(ids)
    assert legs.bootstrap_of(Engine(Role.PREFILL, Address("[::1]:8100")), 8998) == "http://[::1]:8998"


@pytest.mark.parametrize(
    ("events", "data"),
    [
        (b"data: 1\n\ndata: 2\n\n", b"1"),
        (b"data:1\r\n\r\n", b"1"),
        (b"data: 1\r\rdata: 2\r\r", b"1"),
        (b": ping\n\nevent: x\ndata: 1\n\n", b"1"),
        (b"data: 1\ndata: 2\n\n", b"1\n2"),
        (b"\n\n\ndata: 1\n\n", b"1"),
        (b"data: 1\n", None),
        (b"data: 1", None),
        (b": ping\n\n", None),
        (b"", None),
    ],
)
def test_the_first_event_that_has_data(events: bytes, data: bytes | None) -> None:
    assert first_data(events) == data


def test_a_first_event_that_is_an_error() -> None:
    event = b'data: {"error": {"message": "KV load failed", "code": 500}}\n\n'
    error = {"message": "KV load failed", "code": 500}
    assert error_of(event) == error
    assert error_of(event + b"data: [DONE]\n\n") == error  # as vLLM ends it, in one piece
    assert error_of(b": ping\n\n" + event) == error
    for other in (
        b'{"error": null}',
        b'{"error": "x"}',
        b'["error"]',
        b'"error"',
        b'{"choices": "\\"error\\""}',
        b'"error',
    ):
        assert error_of(b"data: " + other + b"\n\n") is None
    assert error_of(b'data: {"choices": []}\n\n' + event) is None


def test_what_the_choice_of_an_engine_goes_by() -> None:
    assert ask_of({"prompt": "x" * 41}, "s").prompt_tokens == 11
    assert ask_of({"prompt": [1, 2, 3]}, "").prompt_tokens == 3
    assert ask_of({"prompt": [[1, 2, 3], [4]]}, "").prompt_tokens == 4
    assert ask_of({"prompt": ["abcd", "efgh"]}, "").prompt_tokens == 2
    content = [{"type": "text", "text": "x" * 40}, {"type": "image_url"}, 7]
    messages = [{"role": "system", "content": "y" * 40}, {"role": "user", "content": content}, None, {"content": 3}]
    assert ask_of({"messages": messages}, "").prompt_tokens == 20
    assert ask_of({"prompt": {"not": "understood"}, "messages": 7}, "").prompt_tokens == 0
    assert ask_of({"prompt": "x"}, "s-1").session == "s-1"


def test_prompts_that_begin_alike_have_one_prefix() -> None:
    def prefix(**request: Any) -> int:
        return ask_of({"model": "tiny"} | request, "").prefix

    head = "x" * legs.PREFIX_CHARACTERS
    assert prefix(prompt=head + "a") == prefix(prompt=head + "b") != prefix(prompt=head[1:] + "a")
    system = {"role": "system", "content": head}
    assert prefix(messages=[system, {"content": "a"}]) == prefix(messages=[system, {"content": "b"}])
    tokens = list(range(legs.PREFIX_CHARACTERS // 4))
    assert prefix(prompt=[*tokens, 1]) == prefix(prompt=[*tokens, 2]) != prefix(prompt=[7, *tokens])
    assert prefix(prompt=head) != prefix(prompt=head, model="other")  # adapters share no KV
    prefix(prompt="\ud800", model="\ud800")
