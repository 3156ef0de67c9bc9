"""The connector inside real vLLM engines over a real store: right tokens, whatever happens between engine and store.

Each engine is a process of its own, its steps driven by hand (vllm_driver.py), so that a load can be met half way.
Answers are compared token by token with those the same engine computed itself.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from demo.cluster import Cluster, free_port
from demo.tiny_model import VOCABULARY, WEIGHT_STD
from tests.e2e.pools import zero_pools
from tests.e2e.vllm_engine import CHUNK, KV_BLOCKS, Engine, prompt_of, whole_blocks

pytestmark = pytest.mark.timeout(400)


def make_sliding_model(path: Path, *, tokenizer: Path) -> None:
    """A Gemma 3 with random weights: of six layers every third sees all tokens, the others the last 128."""
    layers = (["sliding_attention"] * 2 + ["full_attention"]) * 2
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=len(layers),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        sliding_window=128,
        layer_types=layers,
        dtype="float32",
    )
    gemma = Gemma3ForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in gemma.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, WEIGHT_STD, generator=generator)
    gemma.save_pretrained(path)
    for file in [*tokenizer.glob("tokenizer*"), *tokenizer.glob("chat_template*")]:
        shutil.copy(file, path)


@pytest.fixture(scope="module")
def engines(
    store_cluster: Cluster, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Engine]]:
    """Most tests need `engine` alone; all start together, which takes half as long as one by one.

    `trusting` loads and does not verify, `sliding` has two kinds of KV cache, `alone` has no master yet.
    """
    work_dir = tmp_path_factory.mktemp("engines")
    make_sliding_model(work_dir / "model", tokenizer=model)
    store, nobody = store_cluster.master, f"127.0.0.1:{free_port()}"
    engines = {
        "engine": Engine("engine", work_dir, model, store, load_timeout_ms=500),
        "trusting": Engine("trusting", work_dir, model, store, kv_role="kv_consumer", verify=False),
        "sliding": Engine("sliding", work_dir, work_dir / "model", store, kv_blocks=4 * KV_BLOCKS),
        "alone": Engine("alone", work_dir, model, nobody, lookup_timeout_ms=500),
    }
    try:
        yield {name: engine.ready() for name, engine in engines.items()}
    finally:
        for engine in engines.values():
            engine.close()


@pytest.fixture
def engine(engines: dict[str, Engine]) -> Engine:
    """Puts and loads; what it has computed itself is what everything is compared with."""
    return engines["engine"]


@pytest.mark.parametrize("tokens", [700, 640, 65, 31])
def test_what_was_put_is_loaded_to_the_last_whole_block(engine: Engine, tokens: int) -> None:
    prompt = prompt_of(tokens, seed=tokens)
    computed = engine.ask(prompt)
    assert computed["cached"] == 0
    assert engine.reset()
    loaded = engine.ask(prompt)
    assert loaded["tokens"] == computed["tokens"]
    assert loaded["cached"] == whole_blocks(tokens)


def test_only_what_the_engine_lacks_is_loaded(engine: Engine) -> None:
    prompt = prompt_of(700, seed=1)
    computed = engine.ask(prompt)
    assert engine.reset()
    engine.ask(prompt[:100])  # three blocks: the second chunk is half local
    before = engine.hits()
    loaded = engine.ask(prompt)
    assert loaded["tokens"] == computed["tokens"]
    assert loaded["cached"] == whole_blocks(700)
    assert engine.hits() - before == whole_blocks(700) - 96


def test_answers_are_loaded_as_the_next_turns_prompt(engine: Engine) -> None:
    prompt = prompt_of(100, seed=2)
    first = engine.ask(prompt, max_tokens=100)
    assert engine.reset()
    turn = [*prompt, *first["tokens"], *prompt_of(40, seed=3)]
    loaded = engine.ask(turn)
    assert loaded["cached"] == 3 * CHUNK  # 199 tokens were computed; what is not a prompt is stored by whole chunks
    assert engine.ask(turn)["tokens"] == loaded["tokens"]  # from the engine's own cache


def test_preempted_requests_answer_the_same_and_leave_no_block_behind(engine: Engine) -> None:
    prompts = [prompt_of(150 + 10 * i, seed=100 + i) for i in range(10)]
    alone = [engine.ask(prompt, max_tokens=120)["tokens"] for prompt in prompts]
    assert engine.reset()
    before = engine.counts()["vllm:num_preemptions_total"]
    together = engine.generate(prompts=prompts, max_tokens=120)
    assert [answer["tokens"] for answer in together] == alone
    assert engine.counts()["vllm:num_preemptions_total"] > before
    assert engine.used_blocks() == 0


def test_a_request_aborted_in_its_load_gives_its_blocks_back(engine: Engine) -> None:
    prompt = prompt_of(500, seed=4)
    computed = engine.ask(prompt)
    assert engine.reset()
    engine.slow_loads(seconds=0.2)
    try:
        assert engine.abort_in_load(prompt=prompt) == "WAITING_FOR_REMOTE_KVS"
    finally:
        engine.slow_loads(seconds=0)
    assert engine.used_blocks() == 0
    assert engine.ask(prompt)["tokens"] == computed["tokens"]


def test_a_late_load_is_recomputed(engine: Engine) -> None:
    prompt = prompt_of(500, seed=5)
    computed = engine.ask(prompt)
    assert engine.reset()
    before = engine.counts()["larder_client_failed_gets_total"]
    engine.slow_loads(seconds=2.0)
    try:
        late = engine.ask(prompt)
    finally:
        engine.slow_loads(seconds=0)
    assert late["tokens"] == computed["tokens"]
    assert late["seconds"] < 2.0
    assert engine.counts()["larder_client_failed_gets_total"] > before
    assert engine.used_blocks() == 0


def test_corrupt_bytes_are_recomputed_and_put_anew(engine: Engine, store_cluster: Cluster) -> None:
    prompt = prompt_of(500, seed=6)
    computed = engine.ask(prompt)
    assert engine.reset()
    zero_pools(store_cluster)
    before = engine.counts()["larder_client_failed_gets_total"]
    assert engine.ask(prompt)["tokens"] == computed["tokens"]
    assert engine.counts()["larder_client_failed_gets_total"] > before
    assert engine.reset()
    again = engine.ask(prompt)
    assert again["tokens"] == computed["tokens"]
    assert again["cached"] == whole_blocks(500)


def test_another_engine_loads_them_and_shows_when_nobody_verifies(
    engine: Engine, engines: dict[str, Engine], store_cluster: Cluster
) -> None:
    """A consumer that does not verify: right tokens from good bytes, others from zeroes, or no test here could fail."""
    trusting = engines["trusting"]
    good, bad = prompt_of(500, seed=7), prompt_of(500, seed=8)
    computed = [engine.ask(prompt)["tokens"] for prompt in (good, bad)]
    loaded = trusting.ask(good)
    assert loaded["tokens"] == computed[0]
    assert loaded["cached"] == whole_blocks(500)
    zero_pools(store_cluster)
    assert trusting.ask(bad)["tokens"] != computed[1]
    assert trusting.counts().get("larder_client_put_objects_total", 0) == 0


def test_layers_with_a_sliding_window_load_what_they_still_read(
    engines: dict[str, Engine], store_cluster: Cluster
) -> None:
    """Two kinds of KV cache in one model: all of the prompt for one, the last 128 tokens for the other."""
    engine = engines["sliding"]
    prompt = prompt_of(700, seed=9)
    computed = engine.ask(prompt)
    put = engine.counts()["larder_client_put_objects_total"]
    assert engine.reset()
    loaded = engine.ask(prompt)
    assert loaded["tokens"] == computed["tokens"]
    assert loaded["cached"] == whole_blocks(700)
    assert 0 < engine.counts()["larder_client_got_objects_total"] < put
    assert engine.reset()
    zero_pools(store_cluster)
    assert engine.ask(prompt)["tokens"] == computed["tokens"]
    assert engine.counts()["larder_client_failed_gets_total"] > 0
    assert engine.used_blocks() == 0


def test_an_engine_serves_before_its_store_is_there_and_after_it_has_gone(
    engines: dict[str, Engine], tmp_path: Path
) -> None:
    engine = engines["alone"]
    prompts = [prompt_of(300, seed=20 + i) for i in range(6)]
    first = engine.ask(prompts[0])
    started = time.monotonic()
    answers = [engine.ask(prompt)["tokens"] for prompt in prompts]
    assert answers[0] == first["tokens"]
    assert time.monotonic() - started < 5.0  # a time-out each would be more
    with Cluster(tmp_path / "store") as cluster:
        cluster.start_master(port=engine.master_port)
        cluster.start_node("node-1", dram="64MB")
        cluster.wait_ready()
        time.sleep(1.5)  # longer than the store is left alone
        prompt = prompt_of(300, seed=30)
        computed = engine.ask(prompt)
        assert engine.reset()
        deadline = time.monotonic() + 20
        while (loaded := engine.ask(prompt))["cached"] != whole_blocks(300):
            assert time.monotonic() < deadline, "the store is there and not used"
            assert engine.reset()
            time.sleep(0.5)
        assert loaded["tokens"] == computed["tokens"]
        assert engine.reset()
        cluster.processes["master"].kill()
        assert engine.ask(prompt)["tokens"] == computed["tokens"]
    assert [engine.ask(p)["tokens"] for p in prompts] == answers
    assert engine.used_blocks() == 0
