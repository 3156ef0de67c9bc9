"""TLS to engines: which authorities they are checked against, and what a connection to one is opened with.

Everything else about TLS, such as a certificate of the proxy's own, belongs here too: no other module of the engines'
HTTP makes a context.
"""

import ssl
from pathlib import Path
from typing import Any, Final

from services.proxy.core.endpoint import Endpoint

_CLOSE_S: Final = 1.0  # for the closing handshake


def context_of(ca_file: Path | None) -> ssl.SSLContext:
    """Checks names and certificates against the file's authorities, or this system's without one. Raises OSError if the
    file cannot be read, or holds no certificates."""
    return ssl.create_default_context(cafile=ca_file)


class Tls:
    """Raises as context_of() does."""

    def __init__(self, ca_file: Path | None) -> None:
        self._context = None if ca_file is None else context_of(ca_file)

    def options(self, server: Endpoint) -> dict[str, Any]:
        """What create_connection() is told of it; empty for plain HTTP."""
        if not server.is_tls:
            return {}
        if self._context is None:  # this system's authorities, which take a while to read
            self._context = context_of(None)
        return {"ssl": self._context, "server_hostname": server.host, "ssl_shutdown_timeout": _CLOSE_S}
