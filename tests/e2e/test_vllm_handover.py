"""The KV cache's way from prefill to decode with real vLLM engines, and what happens when the store fails on that way.

Every answer is compared token by token with a plain engine's. Requests are sent one at a time. Bytes are zeroed in the
pool files behind the store's back, and nodes die by SIGKILL.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from larder.v1 import master_pb2, master_pb2_grpc
from larder.wire import unpack_keys

from demo.cluster import BLOCK_TOKENS, Cluster
from demo.traffic import Answer, Prompt, ask, make_prompts, metric
from tests.e2e.pools import zero_pools

CHUNK_BLOCKS = 2  # blocks to an object: 256 tokens
SETTLE_DEADLINE_S = 10.0
BACK_DEADLINE_S = 30.0
pytestmark = pytest.mark.timeout(600)  # the first test waits for the engines' starts


@pytest.fixture(scope="module")
def prompts(model: Path) -> Iterator[Prompt]:
    """A prompt nobody has seen, each time one is taken."""
    return iter(make_prompts(model, tokens=[700, 1100, 1500, 900, 1300, 600, 1700, *[800] * 20], seed=42))


@pytest.fixture(autouse=True, scope="module")
def proxy(serve: Callable[[list[str], list[str]], None]) -> None:
    serve(["prefill"], ["decode"])


def whole_blocks(answer: Answer) -> int:
    """Tokens of the prompt that the store can have."""
    return answer.prompt_tokens // BLOCK_TOKENS * BLOCK_TOKENS


def prefill(engines: Cluster, prompt: Prompt) -> None:
    """The prefill leg alone; returns when every whole block of the prompt can be read from the store."""
    before = stored_keys(engines)
    answer = ask(engines.addresses["prefill"], prompt, max_tokens=1, stream=False)
    objects = math.ceil(answer.prompt_tokens // BLOCK_TOKENS / CHUNK_BLOCKS)
    deadline = time.monotonic() + SETTLE_DEADLINE_S
    while len(stored_keys(engines) - before) < objects:
        assert time.monotonic() < deadline, "the prefill engine's puts do not end"
        time.sleep(0.02)


def stored_keys(engines: Cluster) -> set[bytes]:
    with grpc.insecure_channel(engines.master) as channel:
        reply = master_pb2_grpc.MasterStub(channel).List(master_pb2.ListRequest(limit=10_000), timeout=5)
    assert not reply.more
    return set(unpack_keys(reply.keys))


def loaded_tokens(engines: Cluster, name: str) -> float:
    """Tokens that the engine took from Larder so far, instead of computing them."""
    labels = {"source": "external_kv_transfer"}
    return metric(engines.metrics[name], "vllm:prompt_tokens_by_source_total", **labels)


def test_decode_loads_what_prefill_put(engines: Cluster, prompts: Iterator[Prompt]) -> None:
    prompt = next(prompts)
    expected = ask(engines.addresses["plain"], prompt)
    before = loaded_tokens(engines, "decode")
    answer = ask(engines.addresses["proxy"], prompt)
    assert answer.token_ids == expected.token_ids
    assert loaded_tokens(engines, "decode") - before >= whole_blocks(expected) > 0
    assert answer.cached_tokens == 0  # the client is billed by what prefill found
    assert ask(engines.addresses["proxy"], prompt).cached_tokens == whole_blocks(expected)


def test_engines_show_what_they_saved_and_loaded_by_role_and_by_what_carried_it(
    engines: Cluster, prompts: Iterator[Prompt]
) -> None:
    """Prefill and decode are on the pools' host, so nothing goes through the transfer engine."""
    saves, loads, carried = {"role": "producer"}, {"role": "consumer"}, {"transport": "shared_memory"}

    def shown(name: str, metric_name: str, **labels: str) -> float:
        return metric(engines.metrics[name], f"larder_client_{metric_name}", **labels)

    def counts() -> list[float]:
        return [
            shown("prefill", "put_bytes_total", **saves),
            shown("prefill", "put_bytes_total", **saves, **carried),
            shown("decode", "got_bytes_total", **loads),
            shown("decode", "got_bytes_total", **loads, **carried),
            shown("prefill", "saves_total", **saves),
            shown("prefill", "save_seconds_count", **saves, **carried),
            shown("decode", "loads_total", **loads),
            shown("decode", "load_seconds_count", **loads, **carried),
            shown("decode", "lookup_seconds_count", **loads),
            shown("decode", "lookup_seconds_bucket", **loads, le="+Inf"),
        ]

    before = counts()  # by the modules before this one, too
    for _ in range(2):  # an engine shows what ended when it takes its next step
        prefill(engines, prompt := next(prompts))
        ask(engines.addresses["decode"], prompt)
    grown = [now - former for now, former in zip(counts(), before, strict=True)]
    of_all, of_one_kind = grown[::2], grown[1::2]
    assert of_all == of_one_kind
    assert min(of_all) > 0
    assert shown("decode", "load_seconds_sum") > 0
    for name, role in (("prefill", saves), ("decode", loads)):
        assert shown(name, "up", **role) == 1
        assert metric(engines.metrics[name], "larder_build_info", component="connector") == 1


def test_zeroed_bytes_are_recomputed(engines: Cluster, prompts: Iterator[Prompt]) -> None:
    prompt = next(prompts)
    expected = ask(engines.addresses["plain"], prompt)
    failed = metric(engines.metrics["decode"], "larder_client_failed_gets_total")
    corrupt = metric(engines.metrics["master"], "larder_master_corrupt_copies_total")
    prefill(engines, prompt)
    zero_pools(engines)
    assert ask(engines.addresses["decode"], prompt).token_ids == expected.token_ids
    assert metric(engines.metrics["decode"], "larder_client_failed_gets_total") > failed
    assert metric(engines.metrics["master"], "larder_master_corrupt_copies_total") > corrupt


def test_zeroed_bytes_show_when_nobody_verifies(engines: Cluster, prompts: Iterator[Prompt]) -> None:
    """Or the comparison in all the other tests could not fail."""
    prompt = next(prompts)
    expected = ask(engines.addresses["plain"], prompt)
    prefill(engines, prompt)
    zero_pools(engines)
    assert ask(engines.addresses["trusting"], prompt).token_ids != expected.token_ids


def test_unverified_loads_are_right_otherwise(engines: Cluster, prompts: Iterator[Prompt]) -> None:
    prompt = next(prompts)
    expected = ask(engines.addresses["plain"], prompt)
    prefill(engines, prompt)
    assert ask(engines.addresses["trusting"], prompt).token_ids == expected.token_ids


def test_the_second_copy_serves_when_a_node_is_killed(engines: Cluster, prompts: Iterator[Prompt]) -> None:
    prompt = next(prompts)
    expected = ask(engines.addresses["plain"], prompt)
    prefill(engines, prompt)
    before = loaded_tokens(engines, "decode")
    engines.processes["node-1"].kill()
    try:
        assert ask(engines.addresses["decode"], prompt).token_ids == expected.token_ids
        assert loaded_tokens(engines, "decode") - before >= whole_blocks(expected)
    finally:
        engines.start_node("node-1")
        engines.wait_ready()


def test_all_is_recomputed_when_every_node_is_killed(engines: Cluster, prompts: Iterator[Prompt]) -> None:
    prompt = next(prompts)
    expected = ask(engines.addresses["plain"], prompt)
    prefill(engines, prompt)
    for node in ("node-1", "node-2"):
        engines.processes[node].kill()
    try:
        assert ask(engines.addresses["decode"], prompt).token_ids == expected.token_ids
    finally:
        for node in ("node-1", "node-2"):
            engines.start_node(node)
        engines.wait_ready()


def test_a_silent_master_fails_no_request(engines: Cluster, prompts: Iterator[Prompt]) -> None:
    prompt = next(prompts)
    expected = ask(engines.addresses["plain"], prompt)
    engines.processes["master"].pause()
    try:
        assert ask(engines.addresses["proxy"], prompt).token_ids == expected.token_ids
    finally:
        engines.processes["master"].resume()


def test_the_store_serves_again_after_all_that(engines: Cluster, prompts: Iterator[Prompt]) -> None:
    """Within seconds: to a store that was silent, engines connect anew."""
    deadline = time.monotonic() + BACK_DEADLINE_S
    while metric(engines.metrics["master"], "larder_master_nodes", state="attached") < 2:
        assert time.monotonic() < deadline, "the nodes do not come back"
        time.sleep(0.1)
    served = False
    while not served:
        assert time.monotonic() < deadline, "the engines do not come back to the store"
        prompt = next(prompts)
        expected = ask(engines.addresses["plain"], prompt)
        ask(engines.addresses["prefill"], prompt, max_tokens=1, stream=False)
        before = loaded_tokens(engines, "decode")
        assert ask(engines.addresses["decode"], prompt).token_ids == expected.token_ids
        served = loaded_tokens(engines, "decode") - before >= whole_blocks(expected) > 0
