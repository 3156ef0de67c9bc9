"""Everything that shapes an engine's KV bytes, as facts for a namespace.

Runs in a worker, once, when its KV cache exists: only there are the layout and the attention backend known. Two engines
that differ in any fact share nothing; that is a cold cache, the other mistake would be wrong answers (invariant 15).
The files behind an engine, its weights first of all, are told apart by their content; see `identity/model.py`.
"""

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

TOLD: Final = {"_name_or_path", "transformers_version", "_commit_hash"}
"""In a configuration, what only says where it came from."""
NOT_MEDIA: Final = {
    "interleave_mm_strings",
    "limit_per_prompt",
    "mm_encoder_fp8_scale_save_path",
    "mm_encoder_tp_mode",
    "mm_ipc_gpu_memory_gb",
    "mm_processor_cache_gb",
    "mm_processor_cache_type",
    "mm_processor_device",
    "mm_shm_cache_max_object_size_mb",
    "mm_tensor_ipc",
    "skip_mm_profiling",
}
"""Of the multimodal settings, those that decide where and how, not what is computed."""
ATTENTION: Final = ("use_non_causal", "indexer_kv_dtype", "indexer_sparse_logits", "hisparse_config")
"""Of the attention's settings, those that its backend's name does not tell."""
ENVIRONMENT: Final = ("VLLM_BATCH_INVARIANT", "VLLM_CPU_INT4_W4A8", "VLLM_VIDEO_LOADER_BACKEND")


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
        "config": hashlib.blake2b(config.encode(), digest_size=16).hexdigest(),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "implementation": f"{model.model_impl} {sorted(model.model_class_overrides.items())}",
        "quantized_as": str(model.quantization_config),
        "windows": not model.disable_sliding_window,
        "attention": [str(getattr(vllm_config.attention_config, name, None)) for name in ATTENTION],
        "platform": str(vllm_config.additional_config),
        "loading": str(vllm_config.load_config.model_loader_extra_config),
        "media": _media(model.multimodal_config),
        "draft": _draft(vllm_config.speculative_config),
        "environment": {name: os.environ.get(name, "") for name in ENVIRONMENT},
        # Some rotary embeddings choose their factors by the engine's longest sequence.
        "max_model_len": model.max_model_len if "longrope" in config else None,
        "cache_dtype": str(cache.cache_dtype),
        "hashes": _hashes(str(cache.prefix_caching_hash_algo)),
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


def _hashes(algorithm: str) -> str:
    """What block hashes begin with, so that engines whose hashes never meet say so; the seed itself may be a secret."""
    if (seed := os.environ.get("PYTHONHASHSEED")) is not None:
        return f"{algorithm}, seed {hashlib.blake2b(seed.encode(), digest_size=4).hexdigest()}"
    return f"{algorithm}, random seed" if algorithm.startswith("xxhash") else algorithm


def _media(multimodal: Any) -> dict[str, Any] | None:
    """What decides how media become embeddings, beside the files: settings, and the library that processes them."""
    if multimodal is None:
        return None
    settings = {
        field.name: str(getattr(multimodal, field.name))
        for field in dataclasses.fields(multimodal)
        if field.name not in NOT_MEDIA
    }
    if scales := getattr(multimodal, "mm_encoder_fp8_scale_path", None):
        settings["mm_encoder_fp8_scale_path"] = hashlib.blake2b(Path(scales).read_bytes()).hexdigest()
    return settings | {"transformers": version("transformers")}


def _draft(speculative: Any) -> list[str] | None:
    """The draft model, whose KV lies beside the model's own."""
    if speculative is None:
        return None
    model = getattr(speculative, "draft_model_config", None)
    config = "" if model is None else f"{model.dtype} {model.quantization} {_plain(model.hf_config)}"
    return [str(speculative.method), hashlib.blake2b(config.encode(), digest_size=16).hexdigest()]


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
