"""What vLLM says of an engine's KV caches, in the connector's terms, and what of it cannot be served.

Knows vLLM's classes, as the connector does. Refuses at start what whole blocks by prefix hash cannot serve.
"""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    CrossAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from larder.errors import InvalidArgument
from larder.vllm.keys import ChunkPlan
from larder.vllm.settings import ConnectorSettings


def chunk_plan(vllm_config: Any, kv_cache_config: Any, settings: ConnectorSettings) -> ChunkPlan:
    block_tokens, hash_tokens = resolve_kv_cache_block_sizes(kv_cache_config, vllm_config)
    return ChunkPlan(settings.blocks_per_chunk(block_tokens) * block_tokens, block_tokens, hash_tokens)


def window(spec: Any) -> int | None:
    """Tokens a group reads back from a position; None: all, also where a spec's rule is not this simple."""
    return spec.sliding_window if isinstance(spec, SlidingWindowSpec) else None


def check_supported(vllm_config: Any, kv_cache_config: Any) -> None:
    """Refuse what whole blocks by prefix hash cannot serve; raises InvalidArgument that says what to do."""
    if vllm_config.parallel_config.prefill_context_parallel_size > 1:
        raise InvalidArgument("LarderConnector does not serve prefill context parallelism; set its size to 1")
    if not kv_cache_config.prefix_cacheable_groups:
        raise InvalidArgument("LarderConnector needs a KV cache that can be found by its prefix; this model has none")
    for group in kv_cache_config.prefix_cacheable_groups:
        spec = group.kv_cache_spec
        kinds = list(spec.kv_cache_specs.values()) if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]
        for kind in kinds:
            if group.host_resident or not isinstance(kind, AttentionSpec) or isinstance(kind, CrossAttentionSpec):
                raise InvalidArgument(
                    f"LarderConnector serves self-attention in blocks on the device, not {type(kind).__name__} of "
                    f"layers {', '.join(group.layer_names[:3])}; run this model without kv_transfer_config"
                )


def owned_layers(names: Sequence[str], kv_caches: dict[str, torch.Tensor]) -> list[str]:
    """The group's layers that have memory of their own: layers that share another's would only repeat its bytes."""
    first_at: dict[int, str] = {}
    for name in names:
        if name in kv_caches:
            first_at.setdefault(kv_caches[name].data_ptr(), name)
    return list(first_at.values())


def allow_amx() -> None:
    """Ask the kernel for the tile registers: vLLM's attention uses them without asking, and an engine whose first step
    is a full hit of one token has run nothing yet that did."""
    if hasattr(torch.cpu, "_init_amx"):
        torch.cpu._init_amx()
