"""Where vLLM reads weights and adapters: wrapped, so that a worker knows what it has in memory.

vLLM tells connectors neither. Its methods keep their names and results; one that a release no longer has is left out,
and then adapters are not shared at all, and an exchange of weights is known by `reset_prefix_cache` only.
"""

import functools
from collections.abc import Callable
from typing import Any, Final

from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.v1.worker.gpu_worker import Worker

from larder.vllm.identity.files import adapter_state
from larder.vllm.identity.watch import WATCH, Watch

EXCHANGES: Final = (
    "reload_weights",
    "reset_weights",
    "start_weight_update",
    "start_draft_weight_update",
    "update_weights",
    "finish_weight_update",
)


def watch_engine() -> Watch:
    """Wrap vLLM's methods, once a process; an engine that begins has no adapters yet."""
    WATCH.adapters.clear()
    for name in EXCHANGES:
        _wrap(Worker, name, _exchange)
    for name in ("sleep", "discard"):
        _wrap(Worker, name, _give_memory_away)
    _wrap(WorkerLoRAManager, "_load_adapter", _load_adapter)
    return WATCH


def _wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    method = getattr(owner, name, None)
    if method is None or getattr(method, "watched_by_larder", False):
        return

    @functools.wraps(method)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(functools.partial(method, self), *args, **kwargs)

    watched.watched_by_larder = True  # type: ignore[attr-defined]
    setattr(owner, name, watched)


def _exchange(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return method(*args, **kwargs)
    finally:
        WATCH.exchanges += 1  # also where it failed half way


def _give_memory_away(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    for reader in list(WATCH.readers):
        reader.quiet()
    return method(*args, **kwargs)


def _load_adapter(method: Callable[..., Any], lora_request: Any) -> Any:
    before = adapter_state(lora_request.lora_path)
    WATCH.adapters[lora_request.lora_int_id] = ""
    loaded = method(lora_request)
    if before is not None and before == adapter_state(lora_request.lora_path):
        WATCH.adapters[lora_request.lora_int_id] = before
    return loaded
