"""The vLLM connector: KV blocks that one engine computed, loaded by another instead of computed again.

Name it to vLLM with `--kv-transfer-config`: kv_connector LarderConnector, kv_role kv_producer, kv_consumer or kv_both,
kv_load_failure_policy recompute, and the options of `settings.py` in kv_connector_extra_config; and, where Larder is on
the path but not installed, kv_connector_module_path larder.vllm. vLLM itself is imported only when the connector is
asked for: the parts beside it need it not.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from larder.vllm.connector import LarderConnector

__all__ = ["LarderConnector"]


def __getattr__(name: str) -> Any:
    if name == "LarderConnector":
        from larder.vllm.connector import LarderConnector

        return LarderConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
