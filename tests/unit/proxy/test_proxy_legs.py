"""What engines are asked, and where their answers say that KV lies."""

import json
from typing import Any

import pytest

from services.proxy.core import legs, requests
from services.proxy.core.codec import decode_fields, encode
from services.proxy.core.engine import Address, Engine, Handover, Role
from services.proxy.core.legs import prefill_request


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
