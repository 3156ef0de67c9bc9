"""LoRA adapters by content: what a request's adapter is called, once its files have been read.

The engine keeps what it read; the files may be others by now. So an adapter has a name only while its files are in
the state in which the engine read them (`watch.py`), and one that was read anew under its name and path is suspect:
the engine's own prefix cache may still hold blocks of the former one, for it knows no content.
"""

import dataclasses
import hashlib
from concurrent.futures import Executor, Future
from typing import Any, Final

from larder.vllm.identity.files import Changed, Digests, adapter_files, adapter_state, local_folder
from larder.vllm.identity.watch import Watch
from larder.vllm.jobs import Adapter

NO_EFFECT: Final = {
    "default_mm_loras",
    "fully_sharded_loras",
    "max_cpu_loras",
    "max_lora_cls_labels",
    "max_lora_rank",
    "max_loras",
    "specialize_active_lora",
}
"""Of the settings for adapters, those that decide how many and how fast, not what is computed with one."""


def effect_of_settings(lora_config: Any) -> str:
    """What decides an adapter's effect beside its files: to which modules it is applied, how it is read."""
    if lora_config is None:
        return ""
    settings = [(field.name, getattr(lora_config, field.name)) for field in dataclasses.fields(lora_config)]
    return str([(name, _text(value)) for name, value in settings if name not in NO_EFFECT])


class Adapters:
    """The adapters of one engine; `context` is what else decides their effect."""

    def __init__(self, digests: Digests, watch: Watch, readers: Executor, context: str) -> None:
        self._digests = digests
        self._watch = watch
        self._readers = readers
        self._context = context
        self._by_state: dict[str, Future[str | None]] = {}
        self._seen: dict[tuple[str, str], set[str]] = {}

    def known(self, lora: Any) -> tuple[Adapter, Future[str | None]] | None:
        """The adapter as it is now and its files' digest, made once for each state; None: it must not be shared."""
        state = adapter_state(lora.lora_path)
        if state is None or self._watch.adapters.get(lora.lora_int_id, state) != state:
            return None
        self._seen.setdefault((lora.lora_name, lora.lora_path), set()).add(state)
        digest = self._by_state.get(state)
        if digest is None or (digest.done() and digest.result() is None):
            digest = self._by_state[state] = self._readers.submit(self._digest, lora.lora_path, state)
        return Adapter(lora.lora_int_id, state), digest

    def suspect(self, lora: Any) -> bool:
        """Whether other content went by this adapter's name and path before."""
        return len(self._seen.get((lora.lora_name, lora.lora_path), ())) > 1

    def hashed(self, lora: Any, digest: str) -> bytes:
        """What goes into the hashes of requests that are computed with it."""
        text = f"lora:{digest}:{self._context}:{lora.is_3d_lora_weight}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def _digest(self, name: str, state: str) -> str | None:
        try:
            folder = local_folder(name)
            if folder is None:
                return None
            digest = self._digests.folder(adapter_files(folder), folder)
        except (OSError, Changed):
            return None
        return digest if adapter_state(name) == state else None


def _text(value: Any) -> str:
    return str(sorted(value) if isinstance(value, list) else value)
