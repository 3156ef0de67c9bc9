"""One engine's identity in its scheduler: what its weights are called, and what names its requests.

The files are read in the background. An engine whose files are read within START_WAIT_S waits for that when it starts;
another one serves meanwhile, and shares from when they have been read.
"""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_futures
from typing import Any, Final

from larder.vllm.identity.adapters import Adapters, effect_of_settings
from larder.vllm.identity.files import Digests
from larder.vllm.identity.model import model_digest
from larder.vllm.identity.names import RequestNaming
from larder.vllm.identity.support import no_prefix_reason
from larder.vllm.identity.watch import WATCH
from larder.vllm.keys import NAMESPACE_BYTES
from larder.vllm.scheduler import StoreScheduler
from larder.vllm.settings import ConnectorSettings

logger = logging.getLogger("vllm.larder")

START_WAIT_S: Final = 5.0
READERS: Final = 2


class EngineIdentity:
    """What is known of the engine itself; `useless` says why it cannot use a store, if it cannot."""

    def __init__(self, vllm_config: Any, kv_cache_config: Any, settings: ConnectorSettings) -> None:
        self._config = vllm_config
        self._settings = settings
        self._digests = Digests()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="larder-identity")
        self.useless = no_prefix_reason(vllm_config, kv_cache_config)
        self.model: str | None = None
        """The files' digest, where it is known."""
        self._began = time.monotonic()
        self._reading: Future[str | None] | None = None
        if self.useless is None:
            self._reading = self._readers.submit(model_digest, vllm_config, self._digests)
        else:
            logger.warning("Larder is not used: %s", self.useless)

    def naming(self, hash_tokens: int, hasher: Callable[[Any], list[bytes]]) -> RequestNaming:
        """Names for the engine's requests, whose block hashes are over `hash_tokens` each and made by `hasher`."""
        cache = self._config.cache_config
        media = self._config.model_config.multimodal_config
        return RequestNaming(
            hash_tokens=hash_tokens,
            hasher=hasher,
            adapters=Adapters(self._digests, WATCH, self._readers, effect_of_settings(self._config.lora_config)),
            readers=self._readers,
            # Where neither of its caches needs to know media again, vLLM does not look into them.
            counted_media=bool(media and media.mm_processor_cache_gb == 0 and not cache.enable_prefix_caching),
            media_by_content=self._settings.media_by_content,
        )

    def wait(self, scheduler: StoreScheduler) -> None:
        """Give the files a moment to be read, before the first request."""
        if self._reading is not None:
            wait_futures([self._reading], timeout=START_WAIT_S)
            self.learn(scheduler)

    def learn(self, scheduler: StoreScheduler) -> None:
        """Name the weights when the files have been read."""
        if self._reading is None or not self._reading.done():
            return
        reading, self._reading = self._reading, None
        if scheduler.weights is not None:
            return  # the cache was reset meanwhile
        self.model = reading.result()
        scheduler.set_weights(self._named())

    def _named(self) -> bytes:
        model = self._config.model_config
        if self.model is None and self._settings.namespace:
            self.model = f"named:{model.model}@{model.revision}"
        if self.model is None:
            logger.warning(
                "Larder: the weights of %s are not known by content, so this engine shares with itself alone; "
                "an option `namespace` that is chosen anew with each change of them lets engines share",
                model.model,
            )
            return secrets.token_bytes(NAMESPACE_BYTES)
        logger.info("Larder knows the model's files as %s, after %.1f s", self.model, time.monotonic() - self._began)
        return hashlib.blake2b(self.model.encode(), digest_size=NAMESPACE_BYTES).digest()

    def close(self) -> None:
        """End the readers, within a piece of a file."""
        self._digests.close()
        self._readers.shutdown(wait=False, cancel_futures=True)
