"""A store without a cluster, with the names of the real one: the reference model, one dict.

What the contract tests hold true of the real store they hold true of this one, so that code tested against it may be
trusted with the other. No threads, no I/O; nothing is ever evicted, so that pins change nothing.
"""

import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import numpy as np

from larder import tensors
from larder.arguments import WAIT_S_MAX, Pin, check_get_into, check_put, check_room, or_raise, seconds
from larder.errors import LarderError, StoreClosed
from larder.keys import Key, encode_key, encode_keys, encode_prefix
from larder.memory import Memory, destination, view_at
from larder.writes import PutResult


class FakeStore:
    """The names of `larder.Store`, over a dict. `nodes` bounds the copies of a put, `clock` ends lives."""

    def __init__(self, *, nodes: int = 2, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: dict[bytes, float] = {}  # of objects with a time to live
        self._nodes = nodes
        self._objects: dict[bytes, bytes] = {}
        self._calls: dict[str, float] = {"puts": 0, "gets": 0, "hits": 0, "misses": 0, "put_bytes": 0, "get_bytes": 0}
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(
        self,
        key: Key,
        buffer: Any,
        *,
        copies: int = 1,
        pin: Pin = None,
        ttl_s: float | None = None,
        replace: bool = False,
    ) -> PutResult:
        return or_raise(self.put_many([key], [buffer], copies=copies, pin=pin, ttl_s=ttl_s, replace=replace)[0])

    def put_many(
        self,
        keys: Sequence[Key],
        buffers: Sequence[Any],
        *,
        copies: int = 1,
        pin: Pin = None,
        ttl_s: float | None = None,
        depths: Sequence[int] | None = None,
        started: Callable[[], None] | None = None,
        wait_s: float | None = None,
        replace: bool = False,
    ) -> list[PutResult | LarderError]:
        put = check_put(
            keys,
            buffers,
            copies=copies,
            depths=depths,
            pin=pin,
            ttl_s=ttl_s,
            started=started,
            wait_s=wait_s,
            replace=replace,
        )
        self._check_open()
        if started is not None:
            started()
        answers: list[PutResult | LarderError] = []
        for name, memory in zip(put.names, put.memories, strict=True):
            existed = self._has(name) and not put.terms.replace
            if not existed:
                self._ends.pop(name, None)
                if put.terms.ttl_ms:
                    self._ends[name] = self._clock() + put.terms.ttl_ms / 1000
                self._objects[name] = _bytes_of(memory)
                self._calls["put_bytes"] += memory.length
            answers.append(PutResult(copies=0 if existed else min(put.terms.copies, self._nodes), existed=existed))
        self._calls["puts"] += len(put.names)
        return answers

    def put_tensor(
        self,
        key: Key,
        tensor: Any,
        *,
        copies: int = 1,
        pin: Pin = None,
        ttl_s: float | None = None,
        replace: bool = False,
    ) -> PutResult:
        return self.put(key, tensors.parts(tensor), copies=copies, pin=pin, ttl_s=ttl_s, replace=replace)

    def get(self, key: Key) -> bytes | None:
        return or_raise(self.get_many([key])[0])

    def get_many(self, keys: Sequence[Key]) -> list[bytes | LarderError | None]:
        return [self._get(name) for name in self._names(keys)]

    def get_into(self, key: Key, buffer: Any) -> int | None:
        return or_raise(self.get_many_into([key], [buffer])[0])

    def get_many_into(self, keys: Sequence[Key], buffers: Sequence[Any]) -> list[int | LarderError | None]:
        names, memories = check_get_into(keys, buffers)
        self._check_open()
        return [self._get_into(name, memory) for name, memory in zip(names, memories, strict=True)]

    def get_tensor(self, key: Key) -> Any:
        data = self.get(key)
        return None if data is None else tensors.unpack(np.frombuffer(bytearray(data), dtype=np.uint8), encode_key(key))

    @contextmanager
    def view(self, key: Key) -> Iterator[memoryview | None]:
        data = self.get(key)
        if data is None:
            yield None
            return
        with memoryview(data) as memory:
            yield memory

    def match(self, keys: Sequence[Key], wait_s: float = 0.0, hold_s: float = 0.0) -> int:
        """Nothing is ever being written or evicted here, so there is nothing to wait for or to hold."""
        names = self._names(keys)
        seconds(wait_s, "wait_s", 0, WAIT_S_MAX)
        seconds(hold_s, "hold_s", 0, WAIT_S_MAX)
        return next((index for index, name in enumerate(names) if not self._has(name)), len(names))

    def exists(self, keys: Sequence[Key]) -> list[bool]:
        return [self._has(name) for name in self._names(keys)]

    def sizes(self, keys: Sequence[Key]) -> list[int | None]:
        return [len(self._objects[name]) if self._has(name) else None for name in self._names(keys)]

    def keys(self, prefix: Key = b"") -> Iterator[bytes]:
        start = encode_prefix(prefix)
        self._check_open()
        return (name for name in sorted(self._objects) if name.startswith(start) and self._has(name))

    def remove(self, key: Key) -> bool:
        (answer,) = self.remove_many([key])
        return answer

    def remove_many(self, keys: Sequence[Key]) -> list[bool]:
        return [self._remove(name) for name in self._names(keys)]

    def _remove(self, name: bytes) -> bool:
        existed = self._has(name)
        self._ends.pop(name, None)
        self._objects.pop(name, None)
        return existed

    def register_buffer(self, buffer: Any) -> None:
        destination(buffer)

    def unregister_buffer(self, buffer: Any) -> None:
        destination(buffer)

    def stats(self) -> dict[str, float]:
        return dict(self._calls)

    def close(self) -> None:
        self._closed = True

    def _names(self, keys: Sequence[Key]) -> list[bytes]:
        names = encode_keys(keys)
        self._check_open()
        return names

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed("the store is closed")

    def _has(self, name: bytes) -> bool:
        if name in self._ends and self._clock() >= self._ends[name]:
            del self._ends[name], self._objects[name]
        return name in self._objects

    def _get(self, name: bytes) -> bytes | None:
        data = self._objects[name] if self._has(name) else None
        self._calls["gets"] += 1
        self._calls["misses" if data is None else "hits"] += 1
        self._calls["get_bytes"] += len(data or b"")
        return data

    def _get_into(self, name: bytes, memory: Memory) -> int | LarderError | None:
        data = self._get(name)
        if data is None:
            return None
        try:
            check_room(memory, len(data), name)
        except LarderError as error:
            return error
        start = 0
        for address, length in memory.cut(0, len(data)).pieces:
            view_at(address, length, writable=True)[:] = data[start : start + length]
            start += length
        return len(data)


class AsyncFakeStore:
    """The names of `larder.aio.Store`, awaitable, over a FakeStore."""

    def __init__(self, *, nodes: int = 2, clock: Callable[[], float] = time.monotonic) -> None:
        self.sync = FakeStore(nodes=nodes, clock=clock)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.sync, name)
        if name == "stats" or not inspect.ismethod(method):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        return call

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.sync.close()

    def keys(self, prefix: Key = b"") -> AsyncIterator[bytes]:
        return _each(self.sync.keys(prefix))

    @asynccontextmanager
    async def view(self, key: Key) -> AsyncIterator[memoryview | None]:
        with self.sync.view(key) as memory:
            yield memory


async def _each(keys: Iterator[bytes]) -> AsyncIterator[bytes]:
    for key in keys:
        yield key


def _bytes_of(memory: Memory) -> bytes:
    return b"".join(bytes(view_at(address, length)) for address, length in memory.pieces)
