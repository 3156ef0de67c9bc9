"""Why a storage node's transfer engine is not reached: asked by a plain connection, since the engine itself says no
more than that it was not. For messages only; nothing is decided by it.
"""

import asyncio
import errno
import os
import socket
from contextlib import suppress
from typing import Final

from larder.addresses import split

CONNECT_S: Final = 1.0
_NO_WAY: Final = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM)


async def why_unreached(endpoint: str, wait_s: float = CONNECT_S) -> str:
    """A few words, after at most `wait_s`."""
    try:
        host, port = split(endpoint)
    except ValueError:
        return "it is known by a name of the metadata server's only, which gives no address to try"
    try:
        async with asyncio.timeout(wait_s):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"the connection timed out after {wait_s:.2g} s: a firewall drops it, or the host is down"
    except ConnectionRefusedError:
        return "connection refused: nothing listens there, or a firewall rejects it"
    except socket.gaierror as error:
        return f"{host} is not the name of a host: {error.strerror}"
    except OSError as error:
        said = os.strerror(error.errno) if error.errno else str(error)
        return f"{said.lower()}: a firewall, or there is no route" if error.errno in _NO_WAY else said.lower()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return "it accepts connections but carries no bytes: it hangs, or a firewall holds back the engine's other ports"
