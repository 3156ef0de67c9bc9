"""How many chunks can be served, against the definition: every key that a load of so many would read is there."""

import random
from typing import Any

import pytest
from larder.vllm.keys import Chunk
from larder.vllm.lookup import Part, matched_chunks

CHUNK = 64
CHUNKS = [Chunk(i * CHUNK, (i + 1) * CHUNK, bytes([i]) * 32) for i in range(8)]
FULL, OTHER = Part(b"f" * 16), Part(b"o" * 16)


def put(store: Any, part: Part, *indexes: int) -> None:
    store.objects.update({part.namespace + CHUNKS[i].block_hash: b"x" for i in indexes})


async def ask(store: Any, *parts: Part) -> int:
    return await matched_chunks(store, parts, CHUNKS, wait_s=0.1, hold_s=2.0)


async def test_a_chunk_counts_only_when_every_part_has_it(store: Any) -> None:
    put(store, FULL, 0, 1, 2, 4)
    put(store, OTHER, 0, 1, 3)
    assert await ask(store, FULL, OTHER) == 2
    assert store.calls == [("match", 16)]


async def test_a_window_needs_only_its_last_chunks(store: Any) -> None:
    window = Part(b"w" * 16, window_tokens=65)
    put(store, FULL, 0, 1, 2, 3, 4)
    put(store, window, 4)  # tokens 256 to 319: the 64 before token 320
    assert await ask(store, FULL, window) == 5
    assert store.calls == [("match", 8), ("match", 1)]
    store.objects.clear()
    put(store, FULL, 0, 1, 2, 3, 4)
    put(store, Part(b"w" * 16), 0, 1, 3)
    assert await ask(store, FULL, window) == 4  # the last chunk slid away, but the hit may end before it


async def test_nothing_there_is_nothing_matched(store: Any) -> None:
    window = Part(b"w" * 16, window_tokens=100)
    assert await ask(store, FULL) == 0
    assert await ask(store, FULL, window) == 0
    assert await ask(store, window) == 0
    put(store, FULL, 0)
    assert await ask(store, FULL, window) == 0


@pytest.mark.parametrize("seed", range(50))
async def test_the_longest_hit_that_can_be_loaded_is_found(store: Any, seed: int) -> None:
    rng = random.Random(seed)
    parts = [FULL, OTHER][: rng.randint(0, 2)]
    parts += [Part(bytes([i]) * 16, rng.randint(1, 400)) for i in range(rng.randint(0 if parts else 1, 2))]
    for part in parts:
        put(store, part, *(i for i in range(8) if rng.random() < 0.9))

    def needed(count: int) -> set[bytes]:
        end = CHUNKS[count - 1].end
        return {
            part.namespace + chunk.block_hash
            for chunk in CHUNKS[:count]
            for part in parts
            # token t is read for the token at `end` when end - window < t: see vLLM's SlidingWindowManager
            if part.window_tokens is None or any(t > end - part.window_tokens for t in range(chunk.start, chunk.end))
        }

    longest = max((n for n in range(1, 9) if needed(n) <= store.objects.keys()), default=0)
    assert await ask(store, *parts) == longest
    assert not longest or needed(longest) <= store.held
