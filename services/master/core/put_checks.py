"""What a put must be like: anything else is refused here, before anything changed (invariant 12)."""

from services.master.core import messages as m
from services.master.core.calls import Calls, Invalid
from services.master.core.tables import State


def check_start(state: State, calls: Calls, command: m.PutStart) -> None:
    config = state.config
    calls.check_keys(command.keys)
    calls.check_column("sizes", command.sizes, len(command.keys))
    if command.depths:
        calls.check_column("depths", command.depths, len(command.keys))
    if not 0 <= command.copies <= config.copies_max:
        raise Invalid(f"copies is {command.copies}: give 1 to {config.copies_max}, or 0 for the default")
    if not 0 <= command.ttl_ms <= config.ttl_ms_max:
        raise Invalid(f"ttl_ms is {command.ttl_ms}: give 1 to {config.ttl_ms_max}, or 0 for no end")
    limit = config.slices_max * config.slice_bytes
    for key, size in zip(command.keys, command.sizes, strict=True):
        if not 0 < size <= limit:
            raise Invalid(f"object {key[:64]!r} has {size} bytes: give 1 to {limit}")


def check_end(state: State, calls: Calls, command: m.PutEnd) -> None:
    calls.check_batch(len(command.write_ids))
    if len(set(command.write_ids)) != len(command.write_ids):
        raise Invalid("a write id stands twice in the batch")
    calls.check_column("slice_counts", command.slice_counts, len(command.write_ids))
    calls.check_column("checksums", command.checksums, sum(command.slice_counts))
    for write_id, given in zip(command.write_ids, command.slice_counts, strict=True):
        write = state.writes.get(write_id)
        if write is not None and len(write.slices) != given and write.end is None:
            raise Invalid(f"write {write_id} has {len(write.slices)} slices: slice_counts says {given}")
