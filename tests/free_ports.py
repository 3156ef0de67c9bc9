"""Ranges of ports on which nobody listens, for what must be told one. Each worker of pytest has a part of its own."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

FIRST, EACH_WORKER, STEP = 18_000, 1_000, 20
_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


@contextmanager
def free_ports(free: int, taken: int = 0) -> Iterator[str]:
    """MIN-MAX: so many are free, and so many before and after them are listened on as long as the block lasts."""
    begin = FIRST + _WORKER * EACH_WORKER
    for first in range(begin, begin + EACH_WORKER, STEP):
        with ExitStack() as stack:
            ports = range(first, first + free + 2 * taken)
            try:
                sockets = [stack.enter_context(_listening(port)) for port in ports]
            except OSError:
                continue
            for free_one in sockets[taken : taken + free]:
                free_one.close()
            yield f"{ports[0]}-{ports[-1]}"
            return
    raise AssertionError("no free ports")


def _listening(port: int) -> socket.socket:
    made = socket.socket()
    try:
        made.bind(("", port))
        made.listen()
    except OSError:
        made.close()
        raise
    return made
