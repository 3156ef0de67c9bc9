"""Runs a program of Larder with something changed: shorter times, or a promise broken that a test has to miss.

    python tests/chaos/altered.py short_writes,blind_node .venv/bin/master --port 0

What an operator must not be able to set or switch off is changed here, in the process itself, and nowhere else.
"""

import runpy
import sys
from functools import partial

from services.master import cli as master_cli
from services.master.core.extents import Extents
from services.master.core.tables import Config
from services.storage_node.pool import Pool

WRITE_TTL_MS = LATE_WRITE_MS = 1_000  # for clients that write by shared memory only


def short_writes() -> None:
    """A write lives for a second, and its space rests for another."""
    master_cli.Config = partial(Config, write_ttl_ms=WRITE_TTL_MS, late_write_ms=LATE_WRITE_MS)  # type: ignore[misc]


def no_quarantine() -> None:
    """Space comes back at once."""
    original = Extents.quarantine

    def quarantine(self: Extents, *args: object, **kwargs: object) -> object:
        return original(self, *args, **{**kwargs, "not_before": 0})  # type: ignore[arg-type]

    Extents.quarantine = quarantine  # type: ignore[method-assign,assignment]


def blind_node() -> None:
    """A node does not look for writers."""
    Pool.has_writer = lambda self, place: False  # type: ignore[method-assign]


if __name__ == "__main__":
    for name in sys.argv[1].split(","):
        globals()[name]()
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
