"""Whether an attaching node is where it tells clients it is. Only a warning, as there may be a gateway in between."""

import asyncio
import logging
from typing import Final

from larder.addresses import ip_of, is_loopback
from larder.v1 import node_pb2

logger = logging.getLogger(__name__)

_RESOLVE_S: Final = 5.0


async def check_address(hello: node_pb2.Hello, peer: str) -> None:
    """`peer`: the IP address the node connects from; empty if it does not connect by IP."""
    if not hello.address or not peer or (is_loopback(peer) and not is_loopback(hello.address)):
        return  # a node on the master's host may come by loopback
    ips = {str(ip)} if (ip := ip_of(hello.address)) else await _resolve(hello.address)
    if peer not in ips:
        logger.warning(
            "node %s tells clients to reach it at %s%s, but connects from %s: others cannot reach it "
            "unless there is a gateway in between; see its --advertise and --host",
            hello.node_id, hello.address, "" if ips else " (an unknown name)", peer,
        )  # fmt: skip


async def _resolve(name: str) -> set[str]:
    try:
        async with asyncio.timeout(_RESOLVE_S):
            found = await asyncio.get_running_loop().getaddrinfo(name, None)
    except (OSError, TimeoutError):
        return set()
    return {str(ip_of(str(sockaddr[0]))) for *_, sockaddr in found}
