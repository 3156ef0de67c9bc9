"""What tells engines apart: weights by content, and every setting that shapes a block's bytes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from larder.vllm.fingerprint import facts, group_facts, instruction_set, weights_id
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
        ),
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
    assert name_of(engine()) == name_of(other)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("model_config.model", "org/other"),
        ("model_config.revision", "v2"),
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


def test_local_weights_are_known_by_their_content(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for path in (here, there):
        path.mkdir()
        (path / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
        (path / "README.md").write_text(str(path))
    assert weights_id(str(here), None, None) == weights_id(str(there), "ignored", None)
    changed = bytearray((there / "model.safetensors").read_bytes())
    changed[-1] ^= 1
    (there / "model.safetensors").write_bytes(changed)
    assert weights_id(str(here), None, None) != weights_id(str(there), None, None)


def test_hub_weights_are_known_by_name_and_commit() -> None:
    assert weights_id("org/model", "main", "abc") == "org/model@abc"
    assert weights_id("org/model", "v1", None) == "org/model@v1"
    assert weights_id("org/model", None, None) == "org/model@"


def test_an_empty_directory_falls_back_to_its_name(tmp_path: Path) -> None:
    assert weights_id(str(tmp_path), None, None) == f"{tmp_path}@"


def test_the_instruction_set_says_whether_there_are_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    tiles = instruction_set(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert tiles != instruction_set(torch.device("cpu"))
    assert instruction_set(torch.device("cuda:1")) == "cuda"


def test_engines_on_other_instruction_sets_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    name = name_of(engine())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert name_of(engine()) != name
