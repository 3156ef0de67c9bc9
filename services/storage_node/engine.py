"""The node's transfer engine: makes the pool's data area readable and writable for clients on other hosts.

The only module of the node that names mooncake. The engine serves from threads of its own; the node never transfers.
It checks that a transfer lies in the registered area and nothing else: no password, no checksum. It listens on all
interfaces, whatever the host, which is only what others are told. Each area is registered once, as a whole, because of
known traps.
"""

import os
import socket
from pathlib import Path
from typing import Any, Final

from larder import engine_ports
from larder.addresses import join
from larder.engine_ports import Ports
from larder.errors import LarderError

P2P: Final = "P2PHANDSHAKE"
_ENVIRONMENT: Final = {
    "MC_TCP_ENABLE_CONNECTION_POOL": "1",
    "MC_TCP_SLICE_SIZE": str(512 * 2**10),  # 64 KiB, its own default, is 10 to 20 % slower at 16 MiB
    "MC_LOG_LEVEL": "ERROR",
}
_RDMA_DEVICES: Final = Path("/sys/class/infiniband")


class EngineError(LarderError):
    """The engine does not start as configured."""

    remedy = "see --advertise, --host, --engine-ports, --protocol, --device-name and --metadata-server"


class EngineMissing(EngineError):
    """There is no engine to start."""

    remedy = (
        "install the package mooncake-transfer-engine-non-cuda, or mooncake-transfer-engine where CUDA is; "
        "until then only clients on this node's own host reach its pool, by shared memory"
    )


class Engine:
    """A running engine with one registered area. Blocks while it starts; raises EngineMissing or EngineError."""

    def __init__(
        self,
        *,
        host: str,
        unique_name: str,
        metadata_server: str,
        protocol: str,
        device_names: tuple[str, ...],
        ports: Ports | None = None,
    ) -> None:
        """`unique_name` is what a metadata server knows this engine by; with P2PHANDSHAKE it is its host and port."""
        _check_host(host)
        if protocol == "rdma":
            _check_devices(device_names)
        self.protocol = protocol
        if _is_ipv6(host):
            os.environ.setdefault("MC_USE_IPV6", "1")
        if ports is not None:
            engine_ports.use(ports)
        self._engine: Any = _engine_type()()
        if short := engine_ports.shortage():
            raise EngineError(f"the transfer engine does not start: {short}")
        name = host if metadata_server == P2P else unique_name
        if self._engine.initialize(name, metadata_server, protocol, ",".join(device_names)):
            raise EngineError(f"the transfer engine does not start as {name} with {metadata_server} over {protocol}")
        self.endpoint = join(host, self._engine.get_rpc_port()) if metadata_server == P2P else unique_name
        self.base = 0

    def register(self, address: int, length_bytes: int) -> None:
        """Opens this memory to every client, until close(). Raises EngineError."""
        if self._engine.register_memory(address, length_bytes):
            raise EngineError(f"the transfer engine cannot register {length_bytes} bytes for {self.protocol}")
        self.base = address

    def close(self) -> None:
        """Stops serving the registered area: after this the memory may be unmapped."""
        if self._engine is not None and self.base:
            self._engine.unregister_memory(self.base)
        self._engine = None  # its destructor ends the threads


def _engine_type() -> Any:
    for name, value in _ENVIRONMENT.items():  # read by the engine when it is loaded; the operator's own settings win
        os.environ.setdefault(name, value)
    try:
        from mooncake.engine import TransferEngine
    except ImportError as error:
        raise EngineMissing(f"the transfer engine cannot be imported: {error}") from error
    return TransferEngine


def _is_ipv6(host: str) -> bool:
    """Whether it has no IPv4 address. An IPv6 engine can be reached by IPv4 too, but cannot reach IPv4 nodes."""
    return all(family == socket.AF_INET6 for family, *_ in socket.getaddrinfo(host, None))


def _check_host(host: str) -> None:
    """The engine itself accepts any name, and then nobody reaches it."""
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise EngineError(f"{host} is not an address of a host: {error.strerror}") from error


def _check_devices(wanted: tuple[str, ...]) -> None:
    """Without an RDMA device, the engine itself would silently serve TCP."""
    present = sorted(path.name for path in _RDMA_DEVICES.iterdir()) if _RDMA_DEVICES.is_dir() else []
    missing = sorted(set(wanted) - set(present))
    if not present:
        raise EngineError("this host has no RDMA device; use --protocol tcp")
    if missing:
        raise EngineError(f"this host has no RDMA device {', '.join(missing)}, but {', '.join(present)}")
