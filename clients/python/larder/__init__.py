"""Larder's client: a distributed store for the KV caches of LLM serving.

    store = larder.connect("127.0.0.1:50001")
    store.put("key", data, copies=2)
    store.get("key")

`larder.aio` is the same for asyncio, `larder.testing` a store without a cluster.
"""

from larder import aio
from larder.errors import (
    DataLost,
    DeadlineExceeded,
    InvalidArgument,
    LarderError,
    LeaseExpired,
    NoSpace,
    PinRefused,
    StoreClosed,
    TooLarge,
    Unavailable,
    Unreachable,
    WriteFailed,
)
from larder.store import Store, connect
from larder.writes import PutResult

__all__ = [
    "DataLost",
    "DeadlineExceeded",
    "InvalidArgument",
    "LarderError",
    "LeaseExpired",
    "NoSpace",
    "PinRefused",
    "PutResult",
    "Store",
    "StoreClosed",
    "TooLarge",
    "Unavailable",
    "Unreachable",
    "WriteFailed",
    "aio",
    "connect",
]
