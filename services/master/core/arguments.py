"""What calls must be like: anything else is refused here, before it has changed anything (invariant 12)."""

from collections.abc import Mapping, Sequence

from services.master.core import messages as m
from services.master.core.packed import PackedKeys
from services.master.core.pending import Write
from services.master.core.tables import Config


class Invalid(Exception):
    """The caller's mistake: refused before anything changed."""


def check_batch(config: Config, count: int) -> None:
    if count > config.batch_max:
        raise Invalid(f"batch of {count}: the limit is {config.batch_max}, split it")


def check_keys(config: Config, keys: Sequence[bytes]) -> int:
    """The keys' length, 0 if they differ in it; raises Invalid."""
    check_batch(config, len(keys))
    lengths = {keys.width} if isinstance(keys, PackedKeys) and keys else set(map(len, keys))
    if not all(0 < length <= config.key_bytes_max for length in lengths):
        index, key = next((i, key) for i, key in enumerate(keys) if not 0 < len(key) <= config.key_bytes_max)
        raise Invalid(f"key {index} has {len(key)} bytes: give 1 to {config.key_bytes_max}")
    return lengths.pop() if len(lengths) == 1 else 0


def check_column(name: str, column: Sequence[object], count: int) -> None:
    if len(column) != count:
        raise Invalid(f"column {name} has {len(column)} entries: expected {count}")


def check_start(config: Config, command: m.PutStart) -> None:
    check_keys(config, command.keys)
    check_column("sizes", command.sizes, len(command.keys))
    if command.depths:
        check_column("depths", command.depths, len(command.keys))
    if not 0 <= command.copies <= config.copies_max:
        raise Invalid(f"copies is {command.copies}: give 1 to {config.copies_max}, or 0 for the default")
    if not 0 <= command.ttl_ms <= config.ttl_ms_max:
        raise Invalid(f"ttl_ms is {command.ttl_ms}: give 1 to {config.ttl_ms_max}, or 0 for no end")
    limit = config.slices_max * config.slice_bytes
    for key, size in zip(command.keys, command.sizes, strict=True):
        if not 0 < size <= limit:
            raise Invalid(f"object {key[:64]!r} has {size} bytes: give 1 to {limit}")


def check_end(config: Config, writes: Mapping[int, Write], command: m.PutEnd) -> None:
    check_batch(config, len(command.write_ids))
    if len(set(command.write_ids)) != len(command.write_ids):
        raise Invalid("a write id appears twice in the batch")
    check_column("slice_counts", command.slice_counts, len(command.write_ids))
    check_column("checksums", command.checksums, sum(command.slice_counts))
    for write_id, given in zip(command.write_ids, command.slice_counts, strict=True):
        write = writes.get(write_id)
        if write is not None and len(write.slices) != given and write.end is None:
            raise Invalid(f"write {write_id} has {len(write.slices)} slices: slice_counts says {given}")
