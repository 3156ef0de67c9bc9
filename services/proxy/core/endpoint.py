"""What an engine's address says: whether it speaks TLS, where it listens, and under which path its API lies.

There is one way to write an Address: HOST:PORT for plain HTTP, or https://HOST:PORT, with /BASE behind it if need be.
"""

import re
from functools import lru_cache
from typing import Final, NamedTuple

_ADDRESS: Final = re.compile(r"(?:(https?)://)?(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]@?#,]+)(?::(\d+))?(/[^\s?#,\\]*)?", re.I)
_BASE: Final = re.compile(r"(/[!-~]+)*")
_PORTS: Final = {"http": "80", "https": "443"}


class BadPort(ValueError):
    pass


class Endpoint(NamedTuple):
    is_tls: bool
    name: str  # the host as written: IPv6 in brackets
    port: int
    base: str  # before every path: /BASE, or empty

    @property
    def host(self) -> str:
        """As one connects to it."""
        return self.name.strip("[]")

    @property
    def authority(self) -> str:
        return self.beside(self.port)

    def beside(self, port: int) -> str:
        """Another port of the same host, for plain HTTP."""
        return f"{self.name}:{port}"

    def __str__(self) -> str:
        return f"{'https://' if self.is_tls else ''}{self.authority}{self.base}"


def canonical(address: str) -> str:
    """The one way to write this engine's address. Raises ValueError, which quotes it."""
    try:
        return str(endpoint_of(address))
    except ValueError as error:
        raise ValueError(f"{address!r} is {error}") from error


@lru_cache(maxsize=4096)
def endpoint_of(address: str) -> Endpoint:
    """Of an address, however a user writes it. Raises BadPort or another ValueError, which do not quote it."""
    match = _ADDRESS.fullmatch(address)
    scheme = match[1].lower() if match is not None and match[1] else ""
    if match is None or not (match[3] or scheme):
        raise ValueError("not HOST:PORT, nor a URL such as https://HOST:PORT/BASE")
    port, base = match[3] or _PORTS[scheme], (match[4] or "").rstrip("/")
    if len(port) > 5 or not 0 < int(port) < 65536:
        raise BadPort("not HOST:PORT: a port is between 1 and 65535")
    if not _BASE.fullmatch(base) or "//" in base or {".", ".."} & set(base.split("/")):
        raise ValueError("not a path without .. and empty parts behind HOST:PORT")
    return Endpoint(scheme == "https", match[2], int(port), base)
