"""Everything that shapes an engine's KV bytes, as facts for a namespace.

Runs in a worker, once, when its KV cache exists: only there are the layout and the attention backend known. Two engines
that differ in any fact share nothing; that is a cold cache, the other mistake would be wrong answers (invariant 15).
Weights in a local directory are told apart by their content, not by their path.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

WEIGHT_SUFFIXES: Final = {".safetensors", ".bin", ".pt", ".pth", ".gguf"}
TOLD: Final = {"_name_or_path", "transformers_version", "_commit_hash"}
"""In a configuration, what only says where it came from."""
SAMPLES: Final = 64
SAMPLE_BYTES: Final = 4096


def weights_id(model: str, revision: str | None, commit: str | None) -> str:
    """Names the weights: a hub model by name and commit, a local one by its files' names, sizes and sampled bytes.

    Sampling reads at most 256 KiB a file, spread over it: weights that were trained on or merged differ nearly
    everywhere.
    """
    path = Path(model)
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in WEIGHT_SUFFIXES)
    else:
        files = [path] if path.is_file() else []
    if not files:
        return f"{model}@{commit or revision or ''}"
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode())
        with file.open("rb") as opened:
            for at in range(SAMPLES):
                opened.seek(max(0, size - SAMPLE_BYTES) * at // (SAMPLES - 1))
                digest.update(opened.read(SAMPLE_BYTES))
    return f"files:{digest.hexdigest()}"


def instruction_set(device: torch.device) -> str:
    """What decides the packing inside a block: on a CPU its instruction set, elsewhere the device's kind."""
    if device.type != "cpu":
        return str(device.type)
    amx = "amx" if torch.cpu._is_amx_tile_supported() else "no-amx"
    return f"cpu-{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}-{amx}"


def facts(
    vllm_config: Any, kv_cache_config: Any, kv_caches: dict[str, torch.Tensor], *, vllm_version: str
) -> dict[str, Any]:
    """The facts that all groups and ranks of an engine have in common."""
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    config = _plain(model.hf_config)
    return {
        "weights": weights_id(model.model, model.revision, getattr(model.hf_config, "_commit_hash", None)),
        "config": hashlib.blake2b(config.encode(), digest_size=16).hexdigest(),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        # Some rotary embeddings choose their factors by the engine's longest sequence.
        "max_model_len": model.max_model_len if "longrope" in config else None,
        "cache_dtype": str(cache.cache_dtype),
        "hash_algorithm": str(cache.prefix_caching_hash_algo),
        "layout": str(kv_cache_config.kv_cache_layout),
        "backends": _backends(vllm_config, list(kv_caches)),
        "isa": instruction_set(next(iter(kv_caches.values())).device),
        "vllm": vllm_version,
        "tp": parallel.tensor_parallel_size,
        "pp": parallel.pipeline_parallel_size,
        "dcp": parallel.decode_context_parallel_size,
    }


def group_facts(index: int, spec: Any, layers: Sequence[str], kv_caches: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The facts of one KV cache group: which layers, and the shape and strides of a block of each."""
    return {
        "group": index,
        "spec": type(spec).__name__,
        "block_tokens": spec.block_size,
        "layers": [
            [name, list(kv_caches[name].shape[1:]), list(kv_caches[name].stride()[1:]), str(kv_caches[name].dtype)]
            for name in layers
        ],
    }


def _backends(vllm_config: Any, layers: Sequence[str]) -> list[str]:
    """The attention backends by name: each packs a block in its own way."""
    context = vllm_config.compilation_config.static_forward_context
    found = {getattr(context.get(name), "attn_backend", None) for name in layers}
    return sorted(backend.get_name() for backend in found if backend is not None)


def _plain(hf_config: Any) -> str:
    """The model's configuration as canonical JSON, without what only says where it came from."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(name): kept(part) for name, part in value.items() if name not in TOLD}
        if isinstance(value, list | tuple):
            return [kept(part) for part in value]
        if value is None or isinstance(value, str | int | float | torch.dtype):
            return str(value) if isinstance(value, torch.dtype) else value
        # An object without a text form of its own would show its address, which differs from process to process.
        return type(value).__name__

    return json.dumps(kept(hf_config.to_dict()), sort_keys=True)
