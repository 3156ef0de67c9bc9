"""What tells engines apart beside their files: every setting that shapes a block's bytes."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from larder.vllm.fingerprint import facts, group_facts, instruction_set
from larder.vllm.keys import namespace


class Config:
    """A Hugging Face configuration's shape."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def to_dict(self) -> dict[str, Any]:
        return self.values


class Backend:
    @staticmethod
    def get_name() -> str:
        return "CPU_ATTN"


@dataclass
class Multimodal:
    """vLLM's multimodal settings' shape: one that shapes embeddings, one that does not, and a file."""

    mm_processor_kwargs: dict[str, int] | None = None
    mm_processor_cache_gb: float = 4
    mm_encoder_fp8_scale_path: str | None = None


LAYER = "model.layers.0.self_attn.attn"


def engine() -> SimpleNamespace:
    return SimpleNamespace(
        model_config=SimpleNamespace(
            model="org/model",
            revision=None,
            hf_config=Config(
                hidden_size=64,
                dtype=torch.bfloat16,
                text_config={"layers": 2, "_name_or_path": "/somewhere"},
                _name_or_path="/somewhere",
                rope_type="default",
            ),
            dtype=torch.bfloat16,
            quantization=None,
            max_model_len=2048,
            model_impl="auto",
            quantization_config=None,
            disable_sliding_window=False,
            seed=0,
            model_class_overrides={},
            multimodal_config=Multimodal(),
        ),
        attention_config=SimpleNamespace(use_non_causal=False, indexer_kv_dtype="auto"),
        additional_config={},
        load_config=SimpleNamespace(model_loader_extra_config={}),
        speculative_config=None,
        cache_config=SimpleNamespace(cache_dtype="auto", prefix_caching_hash_algo="sha256"),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=1, pipeline_parallel_size=1, decode_context_parallel_size=1
        ),
        compilation_config=SimpleNamespace(static_forward_context={LAYER: SimpleNamespace(attn_backend=Backend)}),
        layout="LBHNC",
        cache=torch.zeros(4, 2, 16, 32, dtype=torch.bfloat16),
        vllm="0.32.0",
    )


def name_of(engine: SimpleNamespace) -> bytes:
    caches = {LAYER: engine.cache}
    shared = facts(engine, SimpleNamespace(kv_cache_layout=engine.layout), caches, vllm_version=engine.vllm)
    return namespace(shared | group_facts(0, SimpleNamespace(block_size=16), [LAYER], caches))


def test_two_engines_alike_share() -> None:
    other = engine()
    elsewhere = {"_name_or_path": "/elsewhere", "text_config": {"layers": 2, "_name_or_path": "/elsewhere"}}
    other.model_config.hf_config = Config(**{**other.model_config.hf_config.values, **elsewhere})
    other.cache = torch.zeros(9, 2, 16, 32, dtype=torch.bfloat16)  # more blocks, each the same
    other.model_config.max_model_len = 4096
    other.model_config.model = "/elsewhere"
    other.model_config.seed = 7  # nothing that is kept is drawn
    other.model_config.multimodal_config = Multimodal(mm_processor_cache_gb=0)
    assert name_of(engine()) == name_of(other)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("model_config.model_impl", "transformers"),
        ("model_config.model_class_overrides", {"LlamaForCausalLM": "mine:Llama"}),
        ("model_config.multimodal_config", None),
        ("model_config.multimodal_config", Multimodal(mm_processor_kwargs={"num_crops": 4})),
        ("model_config.quantization_config", {"linear": "fp8"}),
        ("model_config.disable_sliding_window", True),
        ("attention_config.use_non_causal", True),
        ("attention_config.indexer_kv_dtype", "fp8"),
        ("additional_config", {"rotary": "other"}),
        ("load_config.model_loader_extra_config", {"qlora_adapter_name_or_path": "x"}),
        ("speculative_config", SimpleNamespace(method="ngram")),
        ("model_config.dtype", torch.float16),
        ("model_config.quantization", "fp8"),
        ("model_config.hf_config", Config(hidden_size=64, rope_type="yarn")),
        ("cache_config.cache_dtype", "fp8"),
        ("cache_config.prefix_caching_hash_algo", "xxhash"),
        ("parallel_config.tensor_parallel_size", 2),
        ("parallel_config.pipeline_parallel_size", 2),
        ("parallel_config.decode_context_parallel_size", 2),
        ("compilation_config.static_forward_context", {}),
        ("layout", "LBNHC"),
        ("cache", torch.zeros(4, 4, 16, 32, dtype=torch.bfloat16)),
        ("cache", torch.zeros(4, 2, 16, 32, dtype=torch.float16)),
        ("cache", torch.zeros(4, 16, 2, 32, dtype=torch.bfloat16).permute(0, 2, 1, 3)),
        ("vllm", "0.33.0"),
    ],
)
def test_engines_that_differ_share_nothing(where: str, value: Any) -> None:
    other = engine()
    *path, last = where.split(".")
    target: Any = other
    for part in path:
        target = getattr(target, part)
    setattr(target, last, value)
    assert name_of(engine()) != name_of(other)


def test_the_longest_sequence_counts_only_where_it_shapes_the_positions() -> None:
    one, two = engine(), engine()
    for each in (one, two):
        each.model_config.hf_config = Config(rope_scaling={"type": "longrope"})
    two.model_config.max_model_len = 4096
    assert name_of(one) != name_of(two)


def test_a_configuration_object_does_not_bring_its_address() -> None:
    one, two = engine(), engine()
    for each in (one, two):
        each.model_config.hf_config = Config(vision=SimpleNamespace())
    assert name_of(one) == name_of(two)


def test_the_instruction_set_says_whether_there_are_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    tiles = instruction_set(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert tiles != instruction_set(torch.device("cpu"))
    assert instruction_set(torch.device("cuda:1")) == "cuda"


@pytest.mark.parametrize(
    "name", ["PYTHONHASHSEED", "VLLM_BATCH_INVARIANT", "VLLM_CPU_INT4_W4A8", "VLLM_VIDEO_LOADER_BACKEND"]
)
def test_the_environment_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = name_of(engine())
    monkeypatch.setenv(name, "1")
    assert name_of(engine()) != before


def test_the_seed_of_hashes_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "31415926")
    named = facts(
        engine(), SimpleNamespace(kv_cache_layout="LBHNC"), {LAYER: torch.zeros(4, 2, 16, 32)}, vllm_version="0.32.0"
    )
    assert "31415926" not in str(named)


def test_another_library_that_processes_media_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = name_of(engine())
    monkeypatch.setattr("larder.vllm.fingerprint.version", lambda _: "0")
    assert name_of(engine()) != before


def test_scales_of_an_encoder_count_by_content(tmp_path: Path) -> None:
    one, two, three = engine(), engine(), engine()
    for each, text in ((one, "{}"), (two, "{}"), (three, "{1}")):
        path = tmp_path / f"{id(each)}.json"
        path.write_text(text)
        each.model_config.multimodal_config = Multimodal(mm_encoder_fp8_scale_path=str(path))
    assert name_of(one) == name_of(two)
    assert name_of(one) != name_of(three)


def test_draft_models_differ_by_configuration() -> None:
    def drafting(hidden: int) -> SimpleNamespace:
        model = SimpleNamespace(dtype=torch.bfloat16, quantization=None, hf_config=Config(hidden_size=hidden))
        other = engine()
        other.speculative_config = SimpleNamespace(method="eagle", draft_model_config=model)
        return other

    assert name_of(drafting(64)) == name_of(drafting(64))
    assert name_of(drafting(64)) != name_of(drafting(128))


def test_engines_on_other_instruction_sets_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    name = name_of(engine())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert name_of(engine()) != name
