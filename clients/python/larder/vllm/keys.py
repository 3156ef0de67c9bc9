"""Which objects a prompt's KV blocks are, and what they are called.

Pure. An object is a chunk: the bytes of one or more whole blocks of one KV cache group on one worker. Its key is a
16-byte namespace, which names everything that shapes those bytes (invariant 15), and the hash of the chunk's last
block. That hash is chained: it names every token before it, and with them LoRA adapter, multimodal input and cache salt
(see `identity/names.py`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

FORMAT_VERSION: Final = 1
"""Part of every namespace: raised when the order of bytes inside an object changes."""
NAMESPACE_BYTES: Final = 16


def namespace(facts: Mapping[str, object]) -> bytes:
    """16 bytes that stand for `facts`: equal facts in any order give equal bytes, other facts other bytes.

    Values are JSON's own types; anything else is a TypeError, so that nothing enters by a text form that differs from
    process to process.
    """
    if not facts:
        raise ValueError("a namespace of no facts would be shared by all models")
    canonical = json.dumps({"format": FORMAT_VERSION, **facts}, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=NAMESPACE_BYTES).digest()


def moved(name: bytes, weights: bytes) -> bytes:
    """The namespace `name` for an engine whose weights are called `weights`; nothing to call them: `name` itself."""
    return hashlib.blake2b(name + weights, digest_size=NAMESPACE_BYTES).digest() if weights else name


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, end) of a request, on block boundaries, and the hash that names them and all before them."""

    start: int
    end: int
    block_hash: bytes


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """How a prompt is cut: `chunk_tokens` to an object, `block_tokens` to a block, `hash_tokens` to a block hash.

    Chunks start at multiples of chunk_tokens. Only a prompt's last chunk may be shorter: it ends with the prompt's last
    whole block, so that a hand-over from prefill to decode leaves less than one block to compute again.
    """

    chunk_tokens: int
    block_tokens: int
    hash_tokens: int

    def __post_init__(self) -> None:
        if min(self.chunk_tokens, self.block_tokens, self.hash_tokens) < 1:
            raise ValueError(f"token counts must be positive: {self}")
        if self.chunk_tokens % self.block_tokens or self.block_tokens % self.hash_tokens:
            raise ValueError(f"chunks must be whole blocks, blocks whole hashes: {self}")

    def chunks(
        self, block_hashes: Sequence[bytes], *, known_tokens: int, prompt_tokens: int, after: int = 0
    ) -> list[Chunk]:
        """The chunks among the first `known_tokens` tokens that end behind token `after`, in order.

        The prompt's shorter last chunk is among them until the chunk it starts has become a whole one.
        """
        known_tokens = min(known_tokens, len(block_hashes) * self.hash_tokens)
        whole = known_tokens // self.chunk_tokens * self.chunk_tokens
        first = (after // self.chunk_tokens + 1) * self.chunk_tokens
        ends = list(range(first, whole + 1, self.chunk_tokens))
        tail = prompt_tokens // self.block_tokens * self.block_tokens
        if max(whole, after) < tail <= known_tokens:
            ends.append(tail)
        return [self._chunk(block_hashes, end) for end in ends]

    def _chunk(self, block_hashes: Sequence[bytes], end: int) -> Chunk:
        start = (end - 1) // self.chunk_tokens * self.chunk_tokens
        return Chunk(start, end, block_hashes[end // self.hash_tokens - 1])

    def depth(self, chunk: Chunk) -> int:
        """The chunk's place in its prompt's chain, 0 for the root: roots are worth more than leaves."""
        return chunk.start // self.chunk_tokens
