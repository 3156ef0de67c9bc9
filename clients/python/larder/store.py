"""The store by plain calls: the asyncio one, run on a thread of its own.

Any thread may call, any number at once. The thread starts with the first call, and ends with close() or with the store.
A process that is forked before the first call may go on; one that is forked later is refused (`larder.forks`).
"""

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from typing import Any, ParamSpec, Self, TypeVar

from larder import aio, forks
from larder.arguments import Pin
from larder.calls import Call
from larder.errors import LarderError, StoreClosed
from larder.keys import Key, Page, encode_prefix
from larder.loops import CLOSE_S, LoopThread
from larder.options import Options, resolve
from larder.writes import PutResult

_loops: Any
try:  # here, not with the first call: once the main thread has ended it can no longer be loaded
    import uvloop as _loops
except ImportError:
    _loops = asyncio
P = ParamSpec("P")
T = TypeVar("T")


def connect(
    master: str | None = None,
    *,
    timeout_s: float | None = None,
    verify: bool | None = None,
    transports: Sequence[str] | None = None,
    zone: str | None = None,
    engine_ports: str | None = None,
) -> "Store":
    """A store; nothing is sent, and no thread started, before its first call. Also a context manager.

    master: HOST:PORT, or several with commas between them. timeout_s: of every call (default 5). verify: checksums are
    made and checked (default True). transports: which of "shm" and "engine" may be used (default both). zone: the
    storage nodes with that --zone are the nearest after those of this host. engine_ports: MIN-MAX, of which this
    process's transfer engine listens on two (default: it chooses). What is not given comes from the file that
    LARDER_CONFIG_FILE names; the master first from LARDER_MASTER, and last from MOONCAKE_CONFIG_PATH's file; the ports
    first from LARDER_ENGINE_PORTS. Raises InvalidArgument.
    """
    return Store(
        resolve(
            master,
            timeout_s=timeout_s,
            verify=verify,
            transports=transports,
            zone=zone,
            engine_ports=engine_ports,
        )
    )


class Store:
    """A connection to a Larder cluster. The methods are those of `larder.aio.Store`, and so are their errors."""

    def __init__(self, options: Options) -> None:
        self._store = aio.Store(options)
        self._lock = threading.RLock()  # a signal handler may make calls in the middle of one
        self._thread: LoopThread | None = None
        self._let_go: weakref.finalize[[], Store] | None = None
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
        """Stores the bytes of a bytes-like object or a CPU tensor. An existing key stays as it is, pin and life too.

        replace: it gets these bytes and terms instead; readers get the old or the new, never a mixture.
        """
        return self._run(self._store.put, key, buffer, copies=copies, pin=pin, ttl_s=ttl_s, replace=replace)

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
        """Stores many objects; answers per key a PutResult, or the error. `started` is called on the store's thread."""
        return self._run(
            self._store.put_many,
            keys,
            buffers,
            copies=copies,
            pin=pin,
            ttl_s=ttl_s,
            depths=depths,
            started=started,
            wait_s=wait_s,
            replace=replace,
        )

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
        """Stores a CPU torch tensor with its dtype and shape."""
        return self._run(self._store.put_tensor, key, tensor, copies=copies, pin=pin, ttl_s=ttl_s, replace=replace)

    def get(self, key: Key) -> bytes | None:
        """The object's bytes, or None for a miss, and only for a miss."""
        return self._run(self._store.get, key)

    def get_many(self, keys: Sequence[Key]) -> list[bytes | LarderError | None]:
        """Per key the bytes, None for a miss, or the error."""
        return self._run(self._store.get_many, keys)

    def get_into(self, key: Key, buffer: Any) -> int | None:
        """Reads the object into a writable buffer, which may be longer; its size in bytes, or None for a miss."""
        return self._run(self._store.get_into, key, buffer)

    def get_many_into(self, keys: Sequence[Key], buffers: Sequence[Any]) -> list[int | LarderError | None]:
        """Reads into many buffers; per key the object's size in bytes, None for a miss, or the error."""
        return self._run(self._store.get_many_into, keys, buffers)

    def get_tensor(self, key: Key) -> Any:
        """The torch tensor that put_tensor stored, on the CPU, or None for a miss."""
        return self._run(self._store.get_tensor, key)

    @contextmanager
    def view(self, key: Key) -> Iterator[memoryview | None]:
        """The object as a read-only memoryview inside the block; raises LeaseExpired at its end if its lease ended."""
        context: AbstractAsyncContextManager[memoryview | None] = self._store.view(key)
        memory = self._run(_enter, context)
        try:
            yield memory
        except BaseException as error:
            if not self._run(_exit, context, error):
                raise
        else:
            self._run(_exit, context, None)

    def match(self, keys: Sequence[Key], wait_s: float = 0.0, hold_s: float = 0.0) -> int:
        """How many leading keys are present. Where the run ends at a key that is being written, waits up to wait_s.

        hold_s: these are not evicted for that long, at most a lease; for callers about to get them.
        """
        return self._run(self._store.match, keys, wait_s, hold_s)

    def exists(self, keys: Sequence[Key]) -> list[bool]:
        """Per key whether it is present."""
        return self._run(self._store.exists, keys)

    def sizes(self, keys: Sequence[Key]) -> list[int | None]:
        """Per key the object's size in bytes, None for a miss. Eviction does not count it as a use of the objects."""
        return self._run(self._store.sizes, keys)

    def keys(self, prefix: Key = b"") -> Iterator[bytes]:
        """The keys that begin with `prefix`, in order of their bytes, fetched 1,000 at a time."""
        page = Page(encode_prefix(prefix))
        self._running()

        def keys() -> Iterator[bytes]:
            while page.more:
                yield from self._run(self._store._next_keys, page)

        return keys()

    def remove(self, key: Key) -> bool:
        """Forgets an object; whether there was one."""
        return self._run(self._store.remove, key)

    def remove_many(self, keys: Sequence[Key]) -> list[bool]:
        """Forgets objects, a round trip for every 16,384; per key whether there was one."""
        return self._run(self._store.remove_many, keys)

    def register_buffer(self, buffer: Any) -> None:
        """Lets the transfer engine read and write this memory directly, until unregister_buffer or close."""
        self._run(self._store.register_buffer, buffer)

    def unregister_buffer(self, buffer: Any) -> None:
        """The reverse; no call that uses the buffer may be under way."""
        self._run(self._store.unregister_buffer, buffer)

    def stats(self) -> dict[str, float]:
        """Counters since the store was made: keys, bytes by transport, failovers, hedges, faults, seconds."""
        return self._store.stats()

    def close(self) -> None:
        """Ends calls under way (StoreClosed), and the thread. May be called twice.

        Waits at most 5 s: the thread outlasts it where a transfer does that has to be waited for.
        """
        self._closed = True
        if forks.inherited():
            return
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.stop(wait_s=CLOSE_S)

    def _run(self, method: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        forks.check()
        thread = self._running()
        try:
            return Call(partial(method, *args, **kwargs)).result(thread)
        except asyncio.CancelledError:
            raise StoreClosed("the store was closed while the call was under way") from None
        except LarderError as error:
            if thread.stopping and not isinstance(
                error, StoreClosed
            ):  # its transports went first: the bytes are not lost
                raise StoreClosed("the store was closed while the call was under way") from error
            raise

    def _running(self) -> LoopThread:
        with self._lock:
            if self._closed:
                raise StoreClosed("the store is closed")
            if self._thread is None:
                self._thread = LoopThread(_loops.new_event_loop(), self._store.close)
                self._let_go = weakref.finalize(self, self._thread.stop)
                self._let_go.atexit = False
            return self._thread


async def _enter(context: AbstractAsyncContextManager[T]) -> T:
    return await context.__aenter__()


async def _exit(context: AbstractAsyncContextManager[T], error: BaseException | None) -> bool:
    return bool(await context.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None))
