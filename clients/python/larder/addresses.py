"""HOST:PORT, joined and split in one place. An IPv6 address stands in brackets there, and nowhere else.

Nothing is looked up: what is no IP address is taken for a name.
"""

import ipaddress
import re
from typing import Final

_HOST_PORT: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:/\[\]]+)):([0-9]{1,5})")


def join(host: str, port: int) -> str:
    """HOST:PORT, or [HOST]:PORT for an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str) -> tuple[str, int]:
    """Host, without brackets, and port (1 to 65535); ValueError where that is no HOST:PORT."""
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 0 < int(match[3]) <= 65535 or (match[1] and ip_of(match[1]) is None):
        hint = "; an IPv6 address stands in brackets, as in [::1]:50001" if address.count(":") > 1 else ""
        raise ValueError(f"{address!r} is not HOST:PORT{hint}")
    return match[1] or match[2], int(match[3])


def ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that this is, IPv4 where it is mapped into IPv6; None for a name."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def is_loopback(host: str) -> bool:
    ip = ip_of(host)
    return ip.is_loopback if ip is not None else host == "localhost"
