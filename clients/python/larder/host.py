"""Which host this is. Only a hint for placement: same host is proved by a pool file's token, never by comparing ids."""

import socket
from functools import cache
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@cache
def host_id() -> str:
    """The kernel's boot id: equal for processes that share a kernel, containers included. Elsewhere the host's name."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
