"""KV that the prefill engine pushes to the decode engine, through the proxy, with vLLM's own MooncakeConnector.

Every answer is compared with a plain engine's, token by token. That a prompt was pushed is read off the decode engine's
counter of tokens that it did not compute.
"""

import contextlib
import http.client
import json
import time
from pathlib import Path
from typing import Any

import pytest

from demo.cluster import BLOCK_TOKENS, MODEL_NAME, Cluster, free_port
from demo.tiny_model import EOS, SPECIAL_TOKENS
from demo.traffic import make_prompts, metric

ROOT = Path(__file__).parents[2]
STALL_S = 90  # what a decode engine waits for KV that does not come
pytestmark = pytest.mark.timeout(600)  # the first test waits for the engines' starts


@pytest.fixture(scope="module")
def cluster(engines_store: Cluster, model: Path) -> Cluster:
    """A plain engine, and a pair that pushes behind the proxy."""
    if "plain" not in engines_store.processes:
        engines_store.start_engine("plain", model, own_worker=False)
    bootstrap = str(free_port())
    for role in ("producer", "consumer"):
        engines_store.start_engine(
            role,
            model,
            kv_role=f"kv_{role}",
            connector={"kv_connector": "MooncakeConnector", "kv_connector_module_path": "tests.e2e.mooncake_on_cpu"},
            extra_config={"mooncake_protocol": "tcp"},
            env={
                "PYTHONPATH": f"{ROOT}:{ROOT / 'clients/python'}",
                "VLLM_MOONCAKE_BOOTSTRAP_PORT": bootstrap,
                "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": str(STALL_S),
            },
            own_worker=False,
        )
    engines_store.wait_ready()
    if former := engines_store.processes.get("proxy"):
        former.stop()
    engines_store.start_proxy("--mooncake-bootstrap-port", bootstrap, prefill=["producer"], decode=["consumer"])
    engines_store.wait_ready()
    return engines_store


@pytest.fixture(scope="module")
def texts(model: Path) -> list[str]:
    """Prompts of three whole blocks and a bit."""
    return [prompt.text for prompt in make_prompts(model, tokens=[400] * 16, seed=11)]


def answers(cluster: Cluster, name: str, asked: dict[str, Any]) -> tuple[list[Any], int | None]:
    """What each choice says, and why it ends; and how many tokens of the prompt were cached."""
    fields = {"model": MODEL_NAME, "max_tokens": 12, "temperature": 0, "return_token_ids": True} | asked
    path = "/v1/chat/completions" if "messages" in asked else "/v1/completions"
    connection = http.client.HTTPConnection(cluster.addresses[name], timeout=300)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(fields), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = json.load(response)
        assert response.status == 200, content
    choices = [
        (each["token_ids"], each.get("text") or each.get("message"), each["finish_reason"], each["stop_reason"])
        for each in sorted(content["choices"], key=lambda each: each["index"])
    ]
    details = content["usage"]["prompt_tokens_details"]  # of beams there are none
    return choices, details and details["cached_tokens"]


def pushed(cluster: Cluster) -> float:
    return metric(cluster.metrics["consumer"], "vllm:external_prefix_cache_hits_total")


def check(cluster: Cluster, asked: dict[str, Any], *, is_pushed: bool, choices: int = 1) -> None:
    before, started = pushed(cluster), time.monotonic()
    got, cached = answers(cluster, "proxy", asked)
    took_s = time.monotonic() - started
    assert len(got) == choices
    assert got == answers(cluster, "plain", asked)[0], asked
    assert took_s < STALL_S, f"the decode engine waited {took_s:.0f} s"
    tokens = pushed(cluster) - before
    assert tokens >= 3 * BLOCK_TOKENS if is_pushed else tokens == 0, tokens
    assert cached == 0 or not is_pushed  # what prefill found, not what decode was sent


def test_one_sequence_is_pushed(cluster: Cluster, texts: list[str]) -> None:
    check(cluster, {"prompt": texts[0]}, is_pushed=True)
    check(cluster, {"prompt": [texts[1]], "n": 1}, is_pushed=True)
    check(cluster, {"messages": [{"role": "user", "content": texts[2]}]}, is_pushed=True)


def test_several_sequences_have_each_its_own_tokens(cluster: Cluster, texts: list[str]) -> None:
    """Under one transfer id one of them would decode from another's prompt."""
    check(cluster, {"prompt": texts[3:5]}, is_pushed=False, choices=2)
    check(cluster, {"prompt": [list(range(5, 405)), list(range(400, 0, -1))]}, is_pushed=False, choices=2)
    likeliest = {"temperature": 1, "top_k": 1}  # at temperature 0 vLLM refuses n
    check(cluster, {"prompt": texts[5], "n": 3} | likeliest, is_pushed=False, choices=3)
    check(cluster, {"prompt": texts[6:8], "n": 2} | likeliest, is_pushed=False, choices=4)
    chat = {"messages": [{"role": "user", "content": texts[8]}], "n": 3}
    check(cluster, chat | likeliest, is_pushed=False, choices=3)
    check(cluster, {"prompt": texts[9], "use_beam_search": True, "n": 2, "max_tokens": 3}, is_pushed=False, choices=2)


def test_a_first_token_that_ends_the_answer_keeps_nobody_waiting(cluster: Cluster, texts: list[str]) -> None:
    ((token_ids, *_),), _ = answers(cluster, "plain", {"prompt": texts[10], "max_tokens": 1})
    (first,) = token_ids
    check(cluster, {"prompt": texts[10], "stop_token_ids": [first]}, is_pushed=True)
    check(cluster, {"prompt": texts[11], "stop": [" "], "min_tokens": 3, "bad_words": ["the"]}, is_pushed=True)
    check(cluster, {"prompt": texts[12], "structured_outputs": {"choice": ["a", "b"]}}, is_pushed=True)
    check(cluster, {"prompt": texts[13], "allowed_token_ids": [SPECIAL_TOKENS.index(EOS)]}, is_pushed=True)
    chat = {"messages": [{"role": "user", "content": texts[14]}], "stop_token_ids": [5], "allowed_token_ids": [5]}
    check(cluster, chat, is_pushed=True)
