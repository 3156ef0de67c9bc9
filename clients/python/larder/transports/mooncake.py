"""The one module of the client that names the transfer engine. Its traps, found by trying, are met here and in `pump`:

- Opening a segment of a frozen peer blocks up to 60 s inside the engine's lock, and all other submissions with it: so
  a peer is probed first, which holds no lock, and only one that answered is opened.
- A batch's status is that of its first entry: one batch an entry. After the final status the batch is freed: nobody
  asks after it any more, that would read freed memory.
- A peer that came back under an old name is not found by an engine that knew it: it takes a new engine (0.5 ms).
- It speaks IPv4, or with MC_USE_IPV6 IPv6, as it was loaded: the first peer of the process says which. By IPv6 it
  reaches IPv4 peers too, as addresses mapped into IPv6; the reverse is not possible.
- To destroy an engine takes up to a second with the interpreter's lock held: so none is destroyed, but lent again. Only
  where no ports are left for a new one, those go that were replaced, which hold two ports each.
"""

import ctypes
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from larder import engine_ports, forks
from larder.addresses import ip_of, join, split
from larder.errors import LarderError

logger = logging.getLogger(__name__)

_ENVIRONMENT: Final = {  # read by the engine when it is loaded; the operator's word comes first
    "MC_TCP_ENABLE_CONNECTION_POOL": "1",
    "MC_TCP_SLICE_SIZE": str(512 * 2**10),  # 64 KiB, its own default, is 10 to 20 % slower at 16 MiB
    "MC_TCP_STATUS_TIMEOUT_SEC": "10",  # how long memory of a transfer to a silent peer stays out of use
    "MC_LOG_LEVEL": "ERROR",
}
_IPV6: Final = "MC_USE_IPV6"
_GLOG_LEVEL: Final = "_ZN3fLI17FLAGS_minloglevelE"
_GLOG_ERROR, _GLOG_FATAL = 2, 3

Identity = tuple[bytes, int]
"""What tells two lives of a peer apart: its pool's token, and where that is registered."""


class EngineUnavailable(LarderError):
    """No transfer engine here, or it does not start."""

    remedy = "install the extra larder[engine], or run a storage node on this host"


class PortsTaken(EngineUnavailable):
    """For now: there may be ports again later."""

    remedy = "widen engine_ports: two ports for each process, and some to spare for storage nodes that return"


class Engine:
    """A transfer engine that only asks, never serves."""

    def __init__(self, protocol: str, peer: str) -> None:
        """`peer`, any endpoint to talk to, tells which of this host's addresses to use. Raises EngineUnavailable."""
        forks.cannot_cross(self)  # its end would wait for threads that a forked child has not
        self.protocol = protocol
        self._names: dict[str, Identity] = {}
        make = _engine_type(peer)
        if short := engine_ports.shortage():
            raise PortsTaken(short)
        with _hushed():
            self._engine: Any = make()
            failed = self._engine.initialize(_own_address(reachable(peer)), "P2PHANDSHAKE", protocol, "")
        if failed:
            raise EngineUnavailable(
                f"the transfer engine does not start over {protocol} (MC_LOG_LEVEL=INFO tells more)"
            )

    def meet(self, endpoint: str, identity: Identity) -> bool:
        """Whether the engine can be asked for this peer; not where it knew another one under that name."""
        return self._names.setdefault(endpoint, identity) == identity

    @property
    def needs_registration(self) -> bool:
        """Over TCP any memory will do, and what is registered could be read and written by anybody: so nothing is."""
        return self.protocol != "tcp"

    def probe(self, endpoint: str) -> bool:
        """Whether the peer answers. Blocks up to 60 s, without the interpreter's or the engine's lock."""
        return bool(self._engine.send_probe(reachable(endpoint)) == 0)

    def submit(self, endpoint: str, *, writing: bool, local: int, remote: int, length: int) -> int:
        """The batch id of a new transfer; 0 when it cannot be."""
        start = self._engine.batch_transfer_async_write if writing else self._engine.batch_transfer_async_read
        return int(start(reachable(endpoint), [local], [remote], [length]))

    def status(self, batch: int) -> bool | None:
        """Whether the transfer succeeded, None as long as it may still touch memory. Not asked after an answer."""
        status = self._engine.transfer_check_status(batch)
        return None if status in (0, -2) else bool(status == 1)

    def register(self, address: int, length: int) -> None:
        if self.needs_registration and self._engine.register_memory(address, length):
            raise EngineUnavailable(f"the transfer engine cannot register {length} bytes for {self.protocol}")

    def unregister(self, address: int) -> None:
        if self.needs_registration and self._engine.unregister_memory(address):
            logger.warning("the transfer engine cannot unregister memory")


DESTROYED_S: Final = 3.0
_lock: Final = threading.Lock()
_idle: Final[list[Engine]] = []
_retired: Final[list[Engine]] = []
_replaced: Final[list[Engine]] = []


def borrow(protocol: str, endpoint: str, identity: Identity) -> Engine:
    """An engine that can be asked for this peer; blocks for some tenths of a second. Raises EngineUnavailable."""
    with _lock:
        fit = next(
            (engine for engine in _idle if engine.protocol == protocol and engine.meet(endpoint, identity)), None
        )
        if fit is not None:
            _idle.remove(fit)
            return fit
    if _replaced and engine_ports.shortage():
        _replaced.clear()  # each lives as long as somebody still moves something by it
        until = time.monotonic() + DESTROYED_S
        while engine_ports.shortage() and time.monotonic() < until:
            time.sleep(0.05)
    engine = Engine(protocol, endpoint)
    engine.meet(endpoint, identity)
    return engine


def give_back(engine: Engine) -> None:
    """For others to borrow; transfers that were given up may still be in the air."""
    with _lock:
        _idle.append(engine)


def retire(engine: Engine) -> None:
    """Out of use for good: transfers are in the air that nobody looks after any more."""
    with _lock:
        _retired.append(engine)


def replace(engine: Engine) -> None:
    """Out of use for new peers: it remembers one that is no more. Who still moves something by it holds it."""
    with _lock:
        _replaced.append(engine)


def _engine_type(peer: str) -> Any:
    if "mooncake.engine" not in sys.modules and _families(peer) == {socket.AF_INET6}:
        os.environ.setdefault(_IPV6, "1")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from mooncake.engine import TransferEngine
    except ImportError as error:
        raise EngineUnavailable(f"the transfer engine cannot be imported: {error}") from error
    return TransferEngine


@contextmanager
def _hushed() -> Iterator[None]:
    """Whoever starts an engine reads an error that is none ("Local segment descriptor not found"): not on our account.

    Nothing is kept back that an operator asked for, nor anything after the start. glog's level is the process's.
    """
    try:
        level = ctypes.c_int.in_dll(ctypes.CDLL(sys.modules["mooncake.engine"].__file__), _GLOG_LEVEL)
    except (KeyError, OSError, ValueError):  # another engine, or another build: it may talk
        yield
        return
    before = level.value
    if before == _GLOG_ERROR:
        level.value = _GLOG_FATAL
    try:
        yield
    finally:
        level.value = before


def reachable(endpoint: str) -> str:
    """The endpoint as the engine of this process finds it."""
    try:
        host, port = split(endpoint)
    except ValueError:
        return endpoint  # a metadata server's name
    if _IPV6 not in os.environ or _families(endpoint) != {socket.AF_INET}:
        return endpoint
    return join(f"::ffff:{ip_of(host) or socket.gethostbyname(host)}", port)


def _families(endpoint: str) -> set[int]:
    try:
        host, port = split(endpoint)
        return {family for family, *_ in socket.getaddrinfo(host, port)}
    except (OSError, ValueError):
        return set()


def _own_address(peer: str) -> str:
    try:
        host, port = split(peer)
        family = socket.AF_UNSPEC if _IPV6 in os.environ else socket.AF_INET
        family, _, _, _, address = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing: it only chooses the way
            return str(probe.getsockname()[0])
    except (OSError, ValueError):  # no way there now: a transfer will tell
        return "127.0.0.1"
