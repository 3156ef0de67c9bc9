"""The address at which clients on other hosts reach this node: the one given, else the one it reaches its master from.

An address that leads nowhere from the master's host is refused: all would look attached, and nobody could read.
"""

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from larder.addresses import ip_of, is_loopback, split
from larder.errors import LarderError

logger = logging.getLogger(__name__)

_RESOLVE_S: Final = 5.0
_RETRY_S: Final = 1.0


class AddressError(LarderError):
    """No client on another host can use that address."""


def is_unspecified(host: str) -> bool:
    """Whether it means all addresses of a host: good to listen on, not to connect to."""
    ip = ip_of(host)
    return ip is not None and ip.is_unspecified


async def own_address(host: str, advertise: str, masters: Sequence[str], stop: asyncio.Event) -> str:
    """`host` and `advertise` as given, or empty. Waits for a route to a master; empty if `stop` comes first.

    Raises AddressError.
    """
    given, flag = (advertise, "--advertise") if advertise else (host, "--host")
    if given and not is_unspecified(given):
        if is_loopback(given) and (remote := await _on_another_host(masters)):
            raise AddressError(
                f"{flag} {given}: the master at {remote} is on another host, from where that leads nowhere; "
                "give this host's address with --advertise, or neither flag"
            )
        return given
    told = False
    while not stop.is_set():
        found = [address for master in masters if (address := await _towards(master))]
        if found:
            chosen = next((address for address in found if not is_loopback(address)), found[0])
            if not is_loopback(chosen):
                logger.info("clients on other hosts are told %s, from which this node reaches its master", chosen)
            return chosen
        if not told:
            told = True
            logger.warning("no route to any master (%s) yet, so no address to tell clients", ", ".join(masters))
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _RETRY_S)
    return ""


async def _on_another_host(masters: Sequence[str]) -> str | None:
    for master in masters:
        own = await _towards(master)
        if own and not is_loopback(own) and own not in await _resolve(master):
            return master
    return None


async def _towards(master: str) -> str:
    """The address of this host from which connections to the master come; empty if there is no route."""
    for address in await _resolve(master):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, split(master)[1]))  # sends nothing: it only chooses the route
            return str(probe.getsockname()[0])
    return ""


async def _resolve(master: str) -> list[str]:
    """IPv4 first: that is what the engines of most clients speak."""
    host, port = split(master)
    try:
        async with asyncio.timeout(_RESOLVE_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError):
        return []
    return sorted({str(sockaddr[0]) for *_, sockaddr in found}, key=lambda address: ":" in address)
