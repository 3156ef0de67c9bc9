"""Which ports the transfer engine listens on: two for each engine, on every interface, out of one range a process.

The engine reads the range from its environment, once, when it is loaded; so the first word counts, and another one is
refused. It picks at random and tells of a range that is taken only in its own log: so the range is looked at first. To
it a port is taken also while connections of an earlier process linger there, for up to a minute.
"""

import os
import re
import socket
import sys
from contextlib import suppress
from typing import Final, NamedTuple

EACH: Final = 2
"""What one engine opens: a port for handshakes, which its endpoint names, and one for the bytes."""
NAMES: Final = (("MC_MIN_RPC_PORT", "MC_MAX_RPC_PORT"), ("MC_MIN_PRC_PORT", "MC_MAX_PRC_PORT"))
"""The engine's own variables; the second pair is how earlier versions spell them."""
_RANGE: Final = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")


class Ports(NamedTuple):
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


_used: Ports | None = None


def parse(text: str, least: int = EACH) -> Ports:
    """MIN-MAX, both included; ValueError if it is not one, or has fewer than `least` ports."""
    match = _RANGE.fullmatch(text)
    ports = Ports(int(match[1]), int(match[2])) if match else Ports(0, 0)
    if not 0 < ports.first <= ports.last <= 65535:
        raise ValueError("not a range of ports: write MIN-MAX, as in 18000-18099")
    if ports.last - ports.first + 1 < least:
        raise ValueError(f"expected at least {least} ports: an engine takes {EACH}")
    return ports


def use(ports: Ports) -> None:
    """For all engines of this process, overriding its environment; ValueError if it is too late for that."""
    global _used
    if _used == ports:
        return
    if _used is not None:
        raise ValueError(f"this process's transfer engine uses the ports {_used}, and a process has one range")
    if "mooncake.engine" in sys.modules:
        raise ValueError(
            "this process has loaded the transfer engine already, which reads its range of ports on loading"
        )
    for first, last in NAMES:
        os.environ[first], os.environ[last] = map(str, ports)
    _used = ports


def shortage() -> str:
    """Why no further engine can start: too few ports of the range are free; empty if one can."""
    if _used is None or _has_room(_used):
        return ""
    why = "; connections of an earlier process linger there for up to a minute" if lingers(_used) else ""
    return f"of the ports {_used} fewer than {EACH} are free, and an engine takes {EACH}{why}"


def lingers(ports: Ports) -> bool:
    """Whether an engine has no room yet, but will soon."""
    return not _has_room(ports) and _has_room(ports, reuse=True)


def _has_room(ports: Ports, *, reuse: bool = False) -> bool:
    free = 0
    for port in range(ports.first, ports.last + 1):
        free += _is_free(port, reuse=reuse)
        if free == EACH:
            return True
    return False


def _is_free(port: int, *, reuse: bool) -> bool:
    """`reuse`: even if a closed connection lingers there."""
    with suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        probe.bind(("", port))
        probe.listen()
        return True
    return False
