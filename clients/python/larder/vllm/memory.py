"""Where the engine's KV blocks lie in memory, as plain bytes.

A block of a layer is one contiguous run of bytes; what it says inside (heads, tokens, packing for tiles) is the
attention backend's affair, so blocks are moved whole or not at all. An object is layer after layer, in it block after
block. Knows torch's strides, not vLLM.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from larder.errors import InvalidArgument
from larder.vllm.jobs import SKIP


def rows_of(name: str, cache: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """A layer's cache as bytes: (num_blocks, bytes of a block), a view of the same memory.

    Raises InvalidArgument where a block is not one contiguous run, which no copy of whole blocks can serve.
    """
    if num_blocks < 1 or cache.shape[0] % num_blocks:
        raise InvalidArgument(f"KV cache of {name}: {tuple(cache.shape)} does not divide into {num_blocks} blocks")
    # A block may be split into several kernel blocks, which are then rows of their own.
    block = cache.unflatten(0, (num_blocks, -1))
    run = 1
    for stride, size in sorted(zip(block.stride()[1:], block.shape[1:], strict=True)):
        if size > 1 and stride != run:
            raise InvalidArgument(
                f"KV cache of {name}: shape {tuple(cache.shape)} with strides {cache.stride()} does not keep a block "
                "in one run of bytes; choose a KV cache layout with heads, tokens and content innermost, such as LBHNC"
            )
        run *= size
    item = cache.element_size()
    flat = torch.empty(0, dtype=torch.uint8, device=cache.device).set_(cache.untyped_storage())
    return flat.as_strided((num_blocks, run * item), (block.stride(0) * item, 1), cache.storage_offset() * item)


@dataclass(frozen=True, slots=True)
class KVMemory:
    """The rows of every layer, by KV cache group."""

    groups: tuple[tuple[torch.Tensor, ...], ...]

    def __post_init__(self) -> None:
        if not self.groups or not all(self.groups):
            raise InvalidArgument("every KV cache group needs at least one layer")

    @property
    def device(self) -> torch.device:
        """Where the blocks are; all layers are in one place."""
        return self.groups[0][0].device

    def object_bytes(self, group: int, blocks: int) -> int:
        """The size of an object of so many blocks of a group."""
        return blocks * sum(int(rows.shape[1]) for rows in self.groups[group])


class HostRuns:
    """Memoryviews straight onto blocks that lie in host memory: bytes move without a copy in between."""

    def __init__(self, memory: KVMemory) -> None:
        storages: dict[int, memoryview] = {}
        self._layers: list[list[tuple[memoryview, int, int, int]]] = []  # bytes, first byte, stride, bytes of a block
        for group in memory.groups:
            layers = []
            for rows in group:
                storage = rows.untyped_storage()
                if storage.data_ptr() not in storages:
                    flat = torch.empty(0, dtype=torch.uint8).set_(storage)
                    storages[storage.data_ptr()] = memoryview(flat.numpy())
                layers.append((storages[storage.data_ptr()], rows.storage_offset(), rows.stride(0), rows.shape[1]))
            self._layers.append(layers)
        self.storages = tuple(storages.values())

    def pieces(self, group: int, blocks: Sequence[int]) -> list[memoryview]:
        """The object's bytes in order, as few runs as the block ids allow; SKIP stands for bytes nobody wants."""
        runs = list(_runs(blocks))
        found = []
        for flat, offset, stride, size in self._layers[group]:
            for first, count in runs:
                if first == SKIP:
                    found.append(memoryview(bytearray(count * size)))  # of its own: it is part of a checksum
                elif stride == size:
                    start = offset + first * stride
                    found.append(flat[start : start + count * size])
                else:
                    starts = range(offset + first * stride, offset + (first + count) * stride, stride)
                    found.extend(flat[start : start + size] for start in starts)
        return found


def _runs(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring ids as (first, count); SKIP joins only with SKIP."""
    cuts = [0]
    for at, (left, right) in enumerate(pairwise(blocks), 1):
        if not (left == right == SKIP or (left != SKIP and right == left + 1)):
            cuts.append(at)
    return [(blocks[a], b - a) for a, b in pairwise([*cuts, len(blocks)])]
