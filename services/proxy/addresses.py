"""Where engines may be: how an operator names one, and the networks that --instance-allow opens.

Only IP literals and `localhost` are accepted: another name could point elsewhere after it was checked.
"""

import asyncio
import ipaddress
import json
from collections.abc import Callable, Iterable
from typing import Final

from services.proxy.core.endpoint import BadPort, endpoint_of
from services.proxy.core.engine import Address, Role

PRIVATE: Final = ("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
"""The default: this host and private networks, but neither public nor link-local addresses, where clouds keep their
credentials."""

_RESOLVE_S: Final = 2.0

IP = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """An operator's call is refused, with an HTTP status and what FastAPI calls the detail."""

    def __init__(self, status: int, detail: object) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def parse_instance(body: bytes, is_expected: Callable[[Address], bool] = lambda _: False) -> tuple[Role, Address]:
    """{"type": "prefill" | "decode", "instance": "HOST:PORT", or a URL}; complaints come in the order of vLLM's demo.

    Engines of the command line, and those found, may be called by the name used there.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "Invalid JSON.") from error
    if not isinstance(asked, dict) or asked.get("type") not in list(Role):
        raise Refused(400, "Invalid instance type.")
    instance = asked.get("instance")
    if not isinstance(instance, str) or ":" not in instance:
        raise Refused(400, "Invalid instance format.")
    try:
        endpoint = endpoint_of(instance)
    except BadPort as error:
        raise Refused(400, "Invalid port number.") from error
    except ValueError as error:
        raise Refused(400, "Invalid instance address.") from error
    address = Address(str(endpoint))
    if not is_expected(address) and endpoint.name != "localhost" and _ip_of(endpoint.name) is None:
        raise Refused(400, "Invalid instance address.")
    return Role(asked["type"]), address


class AllowList:
    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    async def allows(self, address: Address) -> bool:
        """localhost is allowed if all its addresses are; no other name is."""
        try:
            host = endpoint_of(address).name
        except ValueError:
            return False
        ip = _ip_of(host)
        if ip is None and host != "localhost":
            return False
        ips = [ip] if ip is not None else await _resolve_localhost()
        return bool(ips) and all(self._holds(each) for each in ips)

    def _holds(self, ip: IP) -> bool:
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped  # where the system connects to
        return any(ip in network for network in self._networks)


async def _resolve_localhost() -> list[IP]:
    try:
        async with asyncio.timeout(_RESOLVE_S):
            found = await asyncio.get_running_loop().getaddrinfo("localhost", None)
    except (OSError, TimeoutError):
        return []
    return [ipaddress.ip_address(sockaddr[0]) for *_, sockaddr in found]


def _ip_of(host: str) -> IP | None:
    """An IPv4 literal, or an IPv6 literal in brackets and without a zone."""
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        return None
    return ip if ip.version == (6 if bracketed else 4) and "%" not in host else None
