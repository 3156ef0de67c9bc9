"""Who may touch which bytes of a pool, and when (invariant 7)."""

from typing import Any

from tests.sim.loop import Violation
from tests.sim.memory import Pool, token_of


class Accesses:
    """Told of every read and write in a run; what is leased the pools remember."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.write_until: dict[tuple[bytes, int], float] = {}  # (token, offset) -> when no write may begin

    def begins_write(self, pool: Pool, offset: int, begun: float) -> None:
        """A client begins to write, which it may not after the write has expired (invariant 7)."""
        if begun > self.write_until.get((pool.token, offset), begun):
            raise Violation(f"a client writes to {pool.node_id} at {offset} after its write's time")

    def was_written(self, pool: Pool, offset: int, length: int, begun: float) -> None:
        """A client's bytes landed."""
        self.begins_write(pool, offset, begun)
        self._is_overwritten(pool, offset, length)

    def _is_overwritten(self, pool: Pool, offset: int, length: int) -> None:
        """Nobody may have a lease on what was there."""
        end = offset + length
        if pool.is_granted(offset, end, self.world.now):
            raise Violation(f"bytes on {pool.node_id} at {offset} are overwritten under a lease")
        pool.tainted = [(first, last) for first, last in pool.tainted if not (offset <= first and last <= end)]
        self.world.counts["reused extents"] += offset in pool.used
        pool.used.add(offset)

    def was_read(self, pool: Pool, move: Any, fault: Any) -> None:
        """A client or a node accepts bytes, or finds them bad."""
        target, start, end = move.memory.owner, move.offset, move.offset + move.memory.length
        if isinstance(target, Pool):
            self._is_overwritten(target, move.memory.pieces[0][0] - target.data_address, move.memory.length)
            if fault is not None and self._is_ordered(target, move) and not pool.is_tainted(start, end):
                raise Violation(f"bytes on {pool.node_id} at {start} changed under a repair")
            return
        granted = pool.is_granted(start, end, self.world.now)
        if fault is None:
            if not granted:
                raise Violation(f"a client reads {pool.node_id} at {start} after its lease")
        elif granted and not pool.is_tainted(start, end):
            raise Violation(f"bytes on {pool.node_id} at {start} changed under a lease")

    def _is_ordered(self, target: Pool, move: Any) -> bool:
        """Whether a master still waits for that fetch."""
        if self.world.master is None:
            return False
        core = self.world.master.part.core
        offset = move.memory.pieces[0][0] - target.data_address
        return any(
            transfer.target.offset == offset and token_of(transfer.node.segments[0].info) == target.token
            for transfer in core.transfers.under_way.values()
        )
