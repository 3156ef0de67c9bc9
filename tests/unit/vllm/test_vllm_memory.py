"""Blocks as bytes: every layout whose blocks are whole runs, straight and through staging, and no other."""

import asyncio
import random
from collections.abc import Callable

import pytest
import torch
from larder.errors import InvalidArgument
from larder.vllm.jobs import SKIP
from larder.vllm.memory import HostRuns, KVMemory, rows_of
from larder.vllm.staging import Staging

BLOCKS, LAYERS, HEADS, TOKENS, CONTENT = 12, 3, 2, 4, 6
SHAPE = (BLOCKS, HEADS, TOKENS, CONTENT)


def filled(size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    count = torch.Size(size).numel() * dtype.itemsize
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).view(dtype).view(size)


def layer_major(dtype: torch.dtype) -> list[torch.Tensor]:
    return list(filled((LAYERS, *SHAPE), dtype))


def block_major(dtype: torch.dtype) -> list[torch.Tensor]:
    whole = filled((BLOCKS, LAYERS, HEADS, TOKENS, CONTENT), dtype)
    return [whole[:, layer] for layer in range(LAYERS)]


def tokens_before_heads(dtype: torch.dtype) -> list[torch.Tensor]:
    return [t.view(BLOCKS, TOKENS, HEADS, CONTENT).permute(0, 2, 1, 3) for t in layer_major(dtype)]


def kernel_blocks(dtype: torch.dtype) -> list[torch.Tensor]:
    """A block of the engine split into two of the attention kernel."""
    return list(filled((LAYERS, BLOCKS * 2, HEADS, TOKENS // 2, CONTENT), dtype))


LAYOUTS = [layer_major, block_major, tokens_before_heads, kernel_blocks]


def memory_of(caches: list[torch.Tensor]) -> KVMemory:
    return KVMemory((tuple(rows_of(f"layer.{i}", cache, BLOCKS) for i, cache in enumerate(caches)),))


def expected(caches: list[torch.Tensor], blocks: list[int]) -> bytes:
    """The object by definition, element by element: layer after layer, in it block after block, in memory's order."""
    found = b""
    for cache in caches:
        ratio = cache.shape[0] // BLOCKS
        order = sorted(range(1, 4), key=lambda dim: -cache.stride(dim))
        for block in blocks:
            part = cache[block * ratio : (block + 1) * ratio].permute(0, *order).contiguous()
            found += part.view(torch.uint8).numpy().tobytes()
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_direct_and_staged_are_the_same_bytes(
    layout: Callable[[torch.dtype], list[torch.Tensor]], dtype: torch.dtype
) -> None:
    caches = layout(dtype)
    memory = memory_of(caches)
    staging = Staging(memory, object_bytes_max=memory.object_bytes(0, 4), staging_bytes=1)
    runs = HostRuns(memory)

    async def gathered(blocks: list[int]) -> bytes:
        async with staging.take(1) as (slot,):
            return bytes(staging.gather(slot, 0, blocks, staging.fence()))

    for blocks in ([3], [1, 2, 3, 4], [7, 2], [5, 6, 0, 1]):
        assert b"".join(runs.pieces(0, blocks)) == expected(caches, blocks)
        assert asyncio.run(gathered(blocks)) == expected(caches, blocks)
        assert memory.object_bytes(0, len(blocks)) == len(expected(caches, blocks))


@pytest.mark.parametrize("way", ["direct", "staged"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_land_in_their_blocks_and_nowhere_else(
    layout: Callable[[torch.dtype], list[torch.Tensor]], way: str
) -> None:
    caches = layout(torch.bfloat16)
    memory = memory_of(caches)
    staging = Staging(memory, object_bytes_max=memory.object_bytes(0, 6), staging_bytes=1)
    before = expected(caches, list(range(BLOCKS)))
    blocks = [SKIP, SKIP, 8, SKIP, 9, 2]
    data = random.Random(1).randbytes(memory.object_bytes(0, len(blocks)))

    async def put() -> None:
        if way == "direct":
            at = 0
            for piece in HostRuns(memory).pieces(0, blocks):
                piece[:] = data[at : at + len(piece)]
                at += len(piece)
            assert at == len(data)
            return
        async with staging.take(1) as (slot,):
            slot.bytes[: len(data)] = data
            staging.scatter(slot, 0, blocks, staging.fence())

    asyncio.run(put())
    run = len(data) // LAYERS // len(blocks)

    def of(source: bytes, layer: int, index: int, count: int) -> bytes:
        at = (layer * count + index) * run
        return source[at : at + run]

    after = expected(caches, list(range(BLOCKS)))
    for layer in range(LAYERS):
        for block in range(BLOCKS):
            if block in blocks:
                assert of(after, layer, block, BLOCKS) == of(data, layer, blocks.index(block), len(blocks))
            else:
                assert of(after, layer, block, BLOCKS) == of(before, layer, block, BLOCKS)


def test_neighbouring_blocks_are_one_run_where_layers_are_apart() -> None:
    pieces = HostRuns(memory_of(layer_major(torch.bfloat16))).pieces(0, [4, 5, 6, 2])
    assert len(pieces) == 2 * LAYERS
    assert len(HostRuns(memory_of(block_major(torch.bfloat16))).pieces(0, [4, 5, 6, 2])) == 4 * LAYERS


def test_all_layers_of_one_storage_are_one_buffer() -> None:
    memory = memory_of(layer_major(torch.bfloat16))
    (buffer,) = HostRuns(memory).storages
    assert len(buffer) == memory.object_bytes(0, BLOCKS)


def test_blocks_that_are_not_one_run_are_refused() -> None:
    heads_outermost = filled((HEADS, BLOCKS, TOKENS, CONTENT), torch.bfloat16).permute(1, 0, 2, 3)
    with pytest.raises(InvalidArgument, match=r"layer\.0: shape \(12, 2, 4, 6\).*such as LBHNC"):
        memory_of([heads_outermost])


def test_caches_that_do_not_divide_into_blocks_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="does not divide into 5 blocks"):
        rows_of("layer.0", layer_major(torch.bfloat16)[0], 5)
    with pytest.raises(InvalidArgument, match="at least one layer"):
        KVMemory(((),))


class Accelerator:
    """Writes down what a device's module is asked, in order."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stream(self, stream: "Stream") -> "Accelerator":
        self.said.append("enter side stream")
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.said.append("leave side stream")


class Stream:
    def __init__(self, said: list[str]) -> None:
        self.said = said

    def wait_event(self, event: str) -> None:
        self.said.append(f"wait for {event}")

    def synchronize(self) -> None:
        self.said.append("synchronize")


@pytest.mark.parametrize("copy", ["gather", "scatter"])
def test_a_devices_copies_follow_the_fence_and_are_over_when_they_return(copy: str) -> None:
    memory = memory_of(layer_major(torch.bfloat16))
    staging = Staging(memory, object_bytes_max=memory.object_bytes(0, 1), staging_bytes=1)
    accelerator = Accelerator()
    staging._accelerator, staging._stream = accelerator, Stream(accelerator.said)

    async def course() -> None:
        async with staging.take(1) as (slot,):
            getattr(staging, copy)(slot, 0, [3], "the fence")

    asyncio.run(course())
    assert accelerator.said == ["wait for the fence", "enter side stream", "synchronize", "leave side stream"]


def test_slots_are_bounded_and_come_back() -> None:
    memory = memory_of(layer_major(torch.bfloat16))
    staging = Staging(memory, object_bytes_max=1000, staging_bytes=3000)

    async def course() -> None:
        async with staging.take(2) as two:
            assert len(two) == 2
            async with staging.take(9) as rest:
                assert len(rest) == 1
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05), staging.take(1):
                        pass
        async with staging.take(9) as all_of_them:
            assert len(all_of_them) == 3

    asyncio.run(course())


def test_there_are_always_two_slots() -> None:
    memory = memory_of(layer_major(torch.bfloat16))
    assert len(Staging(memory, object_bytes_max=1000, staging_bytes=10).buffers) == 2
