"""How much of a prompt the store can serve: which chunks, of every worker and every KV cache group.

One question to the master for an ordinary model. A sliding window reads only the last tokens before a position, and
what has slid out of it is seldom asked for and evicted early; so its parts are asked for only where a hit would need
them. An answer too high costs a load that fails and is computed (invariant 16), never wrong tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from larder.vllm.keys import Chunk


@dataclass(frozen=True, slots=True)
class Part:
    """One worker's objects of one group, and how many tokens back from a hit's end are read; None: all of them."""

    namespace: bytes
    window_tokens: int | None = None


class Matches(Protocol):
    """The part of the store that is asked."""

    async def match(self, keys: Sequence[bytes], wait_s: float = 0.0, hold_s: float = 0.0) -> int: ...

    async def exists(self, keys: Sequence[bytes]) -> list[bool]: ...


async def matched_chunks(
    store: Matches, parts: Sequence[Part], chunks: Sequence[Chunk], *, wait_s: float, hold_s: float
) -> int:
    """How many leading chunks can be loaded, and stay for `hold_s`; waits up to `wait_s` for puts under way."""
    whole = [part.namespace for part in parts if part.window_tokens is None]
    windows = [(part.namespace, part.window_tokens) for part in parts if part.window_tokens is not None]
    wait_s = wait_s / 2 if whole and windows else wait_s
    matched = len(chunks)
    if whole:
        # Chunk by chunk, in it part by part: leading keys over the number of parts are chunks that every part has.
        keys = [namespace + chunk.block_hash for chunk in chunks for namespace in whole]
        matched = await store.match(keys, wait_s, hold_s) // len(whole)
    if not windows or not matched:
        return matched
    needed = _needed(windows, chunks, matched)
    if await store.match(needed, wait_s, hold_s) == len(needed):
        return matched
    keys = list({key: None for end in range(matched, 0, -1) for key in _needed(windows, chunks, end)})
    there = {key for key, exists in zip(keys, await store.exists(keys), strict=True) if exists}
    ends = (end for end in range(matched, 0, -1) if there.issuperset(_needed(windows, chunks, end)))
    end = next(ends, 0)
    if end and hold_s:
        await store.match(_needed(windows, chunks, end), hold_s=hold_s)
    return end


def _needed(windows: Sequence[tuple[bytes, int]], chunks: Sequence[Chunk], count: int) -> list[bytes]:
    """The keys that a hit of the first `count` chunks reads within the windows, from the last chunk back."""
    keys = []
    for namespace, tokens in windows:
        for at in range(count - 1, -1, -1):
            if chunks[at].end <= chunks[count - 1].end - tokens + 1:
                break
            keys.append(namespace + chunks[at].block_hash)
    return keys
