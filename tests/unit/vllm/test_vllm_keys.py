"""Namespaces never alias, and a prompt is cut the same way wherever it is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from larder.vllm.keys import NAMESPACE_BYTES, ChunkPlan, namespace

PLAN = ChunkPlan(chunk_tokens=256, block_tokens=128, hash_tokens=128)


def hashes(count: int) -> list[bytes]:
    return [bytes([i]) * 32 for i in range(count)]


def spans(plan: ChunkPlan, known: int, prompt: int, after: int = 0) -> list[tuple[int, int]]:
    known_hashes = hashes(known // plan.hash_tokens)
    return [(c.start, c.end) for c in plan.chunks(known_hashes, known_tokens=known, prompt_tokens=prompt, after=after)]


def test_a_namespace_is_sixteen_bytes_and_blind_to_the_order_of_facts() -> None:
    assert namespace({"model": "m", "tp": 2}) == namespace({"tp": 2, "model": "m"})
    assert len(namespace({"model": "m"})) == NAMESPACE_BYTES


@pytest.mark.parametrize(
    "other", [{"model": "n", "tp": 2}, {"model": "m", "tp": 1}, {"model": "m", "tp": "2"}, {"model": "m"}]
)
def test_other_facts_are_another_namespace(other: dict[str, object]) -> None:
    assert namespace(other) != namespace({"model": "m", "tp": 2})


def test_a_fact_without_a_fixed_text_form_is_refused() -> None:
    with pytest.raises(TypeError):
        namespace({"layout": object()})
    with pytest.raises(ValueError, match="no facts"):
        namespace({})


def test_whole_chunks_then_the_prompts_last_whole_blocks() -> None:
    assert spans(PLAN, known=700, prompt=700) == [(0, 256), (256, 512), (512, 640)]
    assert spans(PLAN, known=512, prompt=512) == [(0, 256), (256, 512)]
    assert spans(PLAN, known=127, prompt=127) == []


def test_the_short_last_chunk_waits_until_the_prompt_is_known_to_its_end() -> None:
    assert spans(PLAN, known=600, prompt=700) == [(0, 256), (256, 512)]
    assert spans(PLAN, known=640, prompt=700) == [(0, 256), (256, 512), (512, 640)]


def test_answered_tokens_make_the_short_chunk_a_whole_one() -> None:
    assert spans(PLAN, known=768, prompt=700) == [(0, 256), (256, 512), (512, 768)]
    assert spans(PLAN, known=768, prompt=700, after=640) == [(512, 768)]


def test_a_key_is_the_hash_of_the_chunks_last_block() -> None:
    plan = ChunkPlan(chunk_tokens=256, block_tokens=128, hash_tokens=64)
    chunks = plan.chunks(hashes(10), known_tokens=640, prompt_tokens=640)
    assert [c.block_hash[0] for c in chunks] == [3, 7, 9]
    assert [plan.depth(c) for c in chunks] == [0, 1, 2]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (256, 100, 100), (256, 128, 100), (256, 128, 0)])
def test_sizes_that_do_not_divide_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"positive|whole"):
        ChunkPlan(*sizes)


@given(
    prompt=st.integers(1, 5_000),
    steps=st.lists(st.integers(1, 700), min_size=1, max_size=20),
    chunk_blocks=st.integers(1, 5),
)
def test_saving_step_by_step_covers_what_a_later_lookup_asks_for(
    prompt: int, steps: list[int], chunk_blocks: int
) -> None:
    """Chunks offered as tokens become known hold every chunk a reader of the same prompt looks up."""
    plan = ChunkPlan(chunk_tokens=chunk_blocks * 16, block_tokens=16, hash_tokens=16)
    all_hashes = [i.to_bytes(4) for i in range(400)]
    offered, stored, known = set(), 0, 0
    for step in [*steps, prompt]:
        known = min(known + step, 6_400)
        for chunk in plan.chunks(all_hashes, known_tokens=known, prompt_tokens=prompt, after=stored):
            assert chunk.start % plan.chunk_tokens == 0
            assert 0 < chunk.end - chunk.start <= plan.chunk_tokens
            assert chunk not in offered
            offered.add(chunk)
            stored = chunk.end
    wanted = plan.chunks(all_hashes[: prompt // 16], known_tokens=prompt, prompt_tokens=prompt)
    whole = [c for c in wanted if c.end % plan.chunk_tokens == 0]
    assert set(whole) <= offered
    # The short last chunk is missing only where one step went from before it to past the whole chunk it starts.
    tail = [c for c in wanted if c not in whole]
    assert all(c in offered or known >= c.start + plan.chunk_tokens for c in tail)
    assert sum(c.end - c.start for c in wanted) == prompt // 16 * 16
