"""What the scheduler's half needs of its neighbours, by shape: vLLM's requests and block pool, names, lookups.

Pure: types, and the names of a request for which vLLM's own hashes say all.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from larder.vllm.jobs import Adapter
from larder.vllm.keys import Chunk
from larder.vllm.lookup import Part


class Request(Protocol):
    """The part of vLLM's Request that is read here."""

    request_id: str
    block_hashes: Sequence[bytes]
    num_tokens: int
    num_prompt_tokens: int
    max_tokens: int
    num_computed_tokens: int
    skip_reading_prefix_cache: bool


class Names(Protocol):
    """What a request's chunks are called in the store."""

    @property
    def adapter(self) -> Adapter | None:
        """The adapter it is computed with, as far as its names are known."""

    @property
    def suspect(self) -> bool:
        """Whether what the engine's own cache has of it may be of something else that went by the same name."""

    def hashes(self) -> Sequence[bytes] | None:
        """One hash for each of its leading blocks that may be shared; None: not known yet."""


class OwnHashes:
    """The hashes that came with the request."""

    adapter: Adapter | None = None
    suspect = False

    def __init__(self, request: Request) -> None:
        self._request = request

    def hashes(self) -> Sequence[bytes]:
        return self._request.block_hashes


class Pool(Protocol):
    """The part of vLLM's BlockPool that holds blocks."""

    blocks: Sequence[Any]

    def touch(self, blocks: Sequence[Any]) -> None: ...

    def free_blocks(self, ordered_blocks: Iterable[Any]) -> None: ...

    def get_num_free_blocks(self) -> int: ...


class Matcher(Protocol):
    """Asks the store how many leading chunks it can serve."""

    def ready(self) -> bool: ...

    def match(self, parts: Sequence[Part], chunks: Sequence[Chunk], hold_s: float) -> Future[int]: ...

    def timed_out(self) -> None: ...
