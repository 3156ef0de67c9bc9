"""What the chunks of one request are called: vLLM's own block hashes where they name content, and else others.

vLLM's hashes name an adapter by its name and path, and media by whatever identifier they came with. Here an adapter is
named by the bytes of its files, and media without an identifier of their content end what may be shared: of the blocks
from there on there is no hash, so they are neither looked up nor saved.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Final

from larder.vllm.identity.adapters import Adapters
from larder.vllm.identity.media import Media, digest_of_media
from larder.vllm.jobs import Adapter

COUNTED: Final = re.compile(r"(.*:)?renderer-?\d+-mm-\d+-")
"""vLLM's names for media that it did not hash: numbers, which another process gives to other media."""
HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestNaming:
    """Names the requests of one engine.

    `hasher` is vLLM's, for hashes over `hash_tokens`. `counted_media`: identifiers may be counters without showing it.
    `media_by_content`: what the model reads of media is digested here, and no identifier is trusted.
    """

    hash_tokens: int
    hasher: Callable[[Any], list[bytes]]
    adapters: Adapters
    readers: Executor
    counted_media: bool
    media_by_content: bool

    def __call__(self, request: Any) -> "RequestNames":
        return RequestNames(request, self)


class RequestNames:
    """The names of one request's chunks; see RequestNaming."""

    def __init__(self, request: Any, naming: RequestNaming) -> None:
        self._request, self._naming = request, naming
        self._known = naming.adapters.known(request.lora_request) if request.lora_request else None
        self._chain = _Unadapted(request) if request.lora_request else request
        self._media: list[Future[Media]] = []
        self._own = _embeds(request)  # what vLLM's hashes leave out, beside adapter and media
        self._seen: list[bytes] = []  # vLLM's hashes to which `_named` are the names
        self._named: list[bytes] = []

    @property
    def adapter(self) -> Adapter | None:
        """The adapter it is computed with, None for the model alone."""
        return self._known[0] if self._known else None

    @property
    def suspect(self) -> bool:
        """Whether a hit in the engine's own cache may be of another adapter."""
        return bool(self._request.lora_request) and self._naming.adapters.suspect(self._request.lora_request)

    def hashes(self) -> Sequence[bytes] | None:
        """One hash for each leading block that may be shared; None while something is still being read."""
        request, naming = self._request, self._naming
        if not (request.lora_request or request.mm_features or self._own):
            return request.block_hashes  # type: ignore[no-any-return]
        prefix = b"" if self._own is None else self._own
        if request.lora_request:
            if self._known is None:
                return ()
            if not self._known[1].done():
                return None
            if (digest := self._known[1].result()) is None:
                return ()
            prefix += naming.adapters.hashed(request.lora_request, digest)
        blocks = len(request.block_hashes)
        media: list[Media] = []
        if naming.media_by_content:
            for feature in request.mm_features[len(self._media) :]:
                self._media.append(naming.readers.submit(digest_of_media, feature))
            if not all(digest.done() for digest in self._media):
                return None
            media = [digest.result() for digest in self._media]
            ends = [at for at, digest in media if digest is None]
        else:
            ends = [f.mm_position.offset for f in request.mm_features if not self._by_content(f.identifier)]
        if ends:
            blocks = min(blocks, min(ends) // naming.hash_tokens)
        if not prefix and not media:
            return request.block_hashes[:blocks]  # type: ignore[no-any-return]
        return self._renamed(prefix, media)[:blocks]

    def _by_content(self, identifier: str) -> bool:
        return not self._naming.counted_media and COUNTED.match(identifier) is None

    def _renamed(self, prefix: bytes, media: Sequence[Media]) -> list[bytes]:
        """The chain's hashes with what they leave out; made anew from where a session's tokens were taken back."""
        theirs = self._request.block_hashes
        while self._seen and (len(self._seen) > len(theirs) or self._seen[-1] != theirs[len(self._seen) - 1]):
            self._seen.pop()
            self._named.pop()
        if self._chain is not self._request:
            del self._chain.block_hashes[len(self._seen) :]
            self._chain.block_hashes.extend(self._naming.hasher(self._chain))
        for i in range(len(self._seen), len(theirs)):
            end = (i + 1) * self._naming.hash_tokens
            hasher = hashlib.blake2b(self._chain.block_hashes[i] + prefix, digest_size=HASH_BYTES)
            for at, digest in media:
                if at < end:
                    hasher.update(at.to_bytes(8) + (digest or b""))
            self._named.append(hasher.digest())
            self._seen.append(theirs[i])
        return self._named


class _Unadapted:
    """A request as vLLM's hasher sees it, but for its adapter: with a chain of hashes of its own."""

    lora_request = None

    def __init__(self, request: Any) -> None:
        self._request = request
        self.block_hashes: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def _embeds(request: Any) -> bytes | None:
    """Of a prompt given as embeddings vLLM hashes the bytes alone: not their type, nor which of them are tokens."""
    if request.prompt_embeds is None:
        return None
    mask = bytes(request.prompt_is_token_ids or b"")
    return hashlib.blake2b(f"{request.prompt_embeds.dtype}".encode() + mask, digest_size=16).digest()
