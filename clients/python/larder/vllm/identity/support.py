"""Whether the engine can go on from a prefix at all: asked of what vLLM itself knows.

vLLM offers external tokens to models that cannot use them, and computes wrong tokens or dies. Where it would not reuse
its own prefixes for the model's sake, neither do others'. A user who only switched the engine's own prefix cache off
keeps the store.
"""

import os
from typing import Any, Final

NO_INVARIANCE: Final = {"FLASHINFER", "TRITON_MLA"}
"""Backends with which vLLM does not keep its batch invariance over a cached prefix."""


def no_prefix_reason(vllm_config: Any, kv_cache_config: Any) -> str | None:
    """Why this engine cannot continue a prefix; None: it can."""
    model, own = vllm_config.model_config, vllm_config.cache_config.enable_prefix_caching
    if not model.is_prefix_caching_supported:
        return "vLLM does not support prefix caching for this model and runner"
    specs = [spec for group in kv_cache_config.kv_cache_groups for spec in _specs(group.kv_cache_spec)]
    if any(getattr(spec, "non_causal", False) for spec in specs):
        return "the model's attention is not causal"
    if own:
        return None
    # From here on vLLM's own cache is off: by the user's wish, which is no reason, or by need. Chunks of a prompt and
    # what follows a cached prefix are computed alike, so a platform that cannot do the one switches both off.
    if not vllm_config.scheduler_config.enable_chunked_prefill and model.is_chunked_prefill_supported:
        return "vLLM computes every prompt of this model in one piece here"
    if os.environ.get("VLLM_BATCH_INVARIANT", "0") != "0" and _backends(vllm_config) & NO_INVARIANCE:
        return "vLLM's batch invariance excludes prefix caching with this attention backend"
    return None


def _specs(spec: Any) -> list[Any]:
    return [spec, *getattr(spec, "kv_cache_specs", {}).values()]


def _backends(vllm_config: Any) -> set[str]:
    layers = vllm_config.compilation_config.static_forward_context.values()
    found = {getattr(layer, "attn_backend", None) for layer in layers}
    return {backend.get_name() for backend in found if backend is not None}
