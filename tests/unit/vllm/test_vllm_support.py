"""Engines that cannot go on from a prefix, by what vLLM itself says of them."""

from types import SimpleNamespace
from typing import Any

import pytest
from larder.vllm.identity.support import no_prefix_reason


def reason(
    *,
    supported: bool = True,
    own_cache: bool = True,
    chunked: bool = True,
    chunks_supported: bool = True,
    specs: Any = (),
    backend: str = "FLASH_ATTN",
) -> str | None:
    layer = SimpleNamespace(attn_backend=type("Backend", (), {"get_name": staticmethod(lambda: backend)}))
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            is_prefix_caching_supported=supported, is_chunked_prefill_supported=chunks_supported
        ),
        cache_config=SimpleNamespace(enable_prefix_caching=own_cache),
        scheduler_config=SimpleNamespace(enable_chunked_prefill=chunked),
        compilation_config=SimpleNamespace(static_forward_context={"layer": layer, "other": SimpleNamespace()}),
    )
    groups = [SimpleNamespace(kv_cache_spec=spec) for spec in specs]
    return no_prefix_reason(config, SimpleNamespace(kv_cache_groups=groups))


def test_an_ordinary_engine_can() -> None:
    assert reason() is None
    assert reason(specs=[SimpleNamespace(non_causal=False)]) is None


def test_an_engine_whose_user_wants_no_cache_of_its_own_can() -> None:
    assert reason(own_cache=False) is None


def test_a_model_or_runner_without_support_cannot_even_if_its_user_insists() -> None:
    assert "does not support" in str(reason(supported=False))
    assert "does not support" in str(reason(supported=False, own_cache=False))


@pytest.mark.parametrize("own_cache", [True, False])
def test_attention_that_is_not_causal_cannot(own_cache: bool) -> None:
    inner = SimpleNamespace(kv_cache_specs={"layer": SimpleNamespace(non_causal=True)})
    for spec in (SimpleNamespace(non_causal=True), inner):
        assert "not causal" in str(reason(specs=[SimpleNamespace(), spec], own_cache=own_cache))


def test_a_platform_that_computes_prompts_whole_cannot() -> None:
    assert "in one piece" in str(reason(own_cache=False, chunked=False))
    assert reason(own_cache=False, chunked=False, chunks_supported=False) is None


def test_batch_invariance_excludes_it_where_vllm_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(own_cache=False, backend="FLASHINFER") is None
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert "invariance" in str(reason(own_cache=False, backend="FLASHINFER"))
    assert reason(own_cache=False, backend="FLASH_ATTN") is None
