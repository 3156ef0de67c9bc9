"""The one tree of errors. A miss is no error: reads answer None for it, and only for it (invariants 1 and 16).

    LarderError
    ├── InvalidArgument      the caller's mistake: key, size, buffer, option (also a ValueError)
    ├── Unavailable          no master answered, or it is overloaded
    │   └── Unreachable      a storage node cannot be reached from this host: nothing says that its bytes are lost
    ├── DeadlineExceeded     not done in time; nothing is promised (also a TimeoutError)
    ├── NoSpace              eviction could not free enough in time
    │   ├── TooLarge         would not fit even into empty pools
    │   └── PinRefused       the share of the pools that may be pinned hard is used up
    ├── WriteFailed          no copy of some slice could be written, or the write expired: the key was not stored
    ├── DataLost             every copy failed its checksum
    ├── LeaseExpired         a view was used for longer than its lease: what was read may be another object's bytes
    └── StoreClosed          the store was closed

Every error carries the key and the node it speaks of (None where there is none) and ends with what to do.
"""

from typing import ClassVar


class LarderError(Exception):
    """Base of everything this package raises on purpose. In batches it stands in the key's place."""

    remedy: ClassVar[str] = ""

    def __init__(
        self, message: str, *, key: bytes | None = None, node: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(message)
        self.key = key
        self.node = node
        if remedy is not None:
            self.remedy = remedy  # type: ignore[misc]  # what helps this time

    def __str__(self) -> str:
        parts = [super().__str__()]
        if self.key is not None:
            parts.append(f"key {show_key(self.key)}")
        if self.node is not None:
            parts.append(f"node {self.node}")
        said = ", ".join(parts)
        return f"{said}; {self.remedy}" if self.remedy else said


class InvalidArgument(LarderError, ValueError):
    """The call makes no sense as it is; the message says what was expected and what was given."""


class Unavailable(LarderError):
    """No master answered within the deadline. Says nothing about whether a key exists."""

    remedy = "check that the master runs and its address is right, then try again"


class Unreachable(Unavailable):
    """No copy can be read from this host, and at least one of them may be intact: the message names each address."""

    remedy = "check the way from this host to that address (firewall, the node's --host), then try again"


class DeadlineExceeded(LarderError, TimeoutError):
    """Not done in time. A put may or may not have happened; a get did not."""

    remedy = "try again, or give a longer timeout_s"


class NoSpace(LarderError):
    """The pools are full, and eviction freed too little within the deadline."""

    remedy = "try again later, remove objects, or add storage nodes"


class TooLarge(NoSpace):
    """The object would not fit even into empty pools, or there are no pools."""

    remedy = "add storage nodes or larger pools, or store smaller objects"


class PinRefused(NoSpace):
    """The master lets only so much of each pool be pinned hard, and that is used up."""

    remedy = "put it without a pin or with pin='soft', remove what is pinned, or raise the master's --pin-share"


class WriteFailed(LarderError):
    """The bytes did not reach the pools, or the write expired on the way: nothing was stored under this key."""

    remedy = "put it again"


class DataLost(LarderError):
    """The object is known, but every copy of a slice has other bytes than were put."""

    remedy = "treat it as a miss and put it again; the bad copies were reported"


class LeaseExpired(LarderError):
    """A view was used for longer than its lease."""

    remedy = "throw away what was read from the view and read again"


class StoreClosed(LarderError):
    """The store was closed, or closed while the call was under way."""

    remedy = "connect again"


def show_key(key: bytes) -> str:
    """A key for people: as text where it is text, and never longer than a line."""
    text = key.decode("utf-8", "backslashreplace")
    text = text if text.isprintable() else key.hex()
    return repr(text if len(text) <= 80 else text[:77] + "...")
