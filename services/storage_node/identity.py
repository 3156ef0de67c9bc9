"""A node's default name: it differs wherever two nodes may meet, and survives a restart.

Host names do not suffice: containers of one image may share theirs, and a machine may run several nodes. The kernel
and the file system of their pools tell nodes apart; nodes that share both are numbered, by who holds the locks of
which pool files.
"""

import hashlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from larder.host import host_id

from services.storage_node.pool import Pool, PoolTaken
from services.storage_node.pool_dir import reclaim, turn

_HOST_NAME_MAX: Final = 48
_NODES_MAX: Final = 64  # with one pool folder


def default_ids(pool_dir: Path) -> Iterator[str]:
    """Names for the nodes that use that pool folder, in order."""
    status = pool_dir.stat()
    where = f"{host_id()} {status.st_dev} {status.st_ino}"
    host_name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).lstrip("._-")[:_HOST_NAME_MAX] or "node"
    base = f"{host_name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
    yield base
    for number in range(2, _NODES_MAX + 1):
        yield f"{base}-{number}"


def own_pool(pool_dir: Path, node_id: str, capacity_bytes: int, *, wall_clock_ns: int) -> tuple[str, Pool]:
    """The pool of the node with that id, or with the first default id that no running node has; and the id.

    Removes what dead nodes left in that folder. Raises PoolTaken, PoolError."""
    with turn(pool_dir):
        for candidate in [node_id] if node_id else default_ids(pool_dir):
            try:
                pool = Pool(pool_dir, candidate, capacity_bytes, wall_clock_ns=wall_clock_ns)
            except PoolTaken:
                if node_id:
                    raise
                continue
            reclaim(pool_dir, pool.path)
            return candidate, pool
    raise PoolTaken(f"{_NODES_MAX} storage nodes have their pools in {pool_dir} already: give another --pool-dir")
