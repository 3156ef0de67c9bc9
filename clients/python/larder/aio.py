"""The client's one implementation, for asyncio. `larder.connect` gives the same by plain calls.

    async with larder.aio.connect("127.0.0.1:50001") as store:
        await store.put("key", b"bytes", copies=2)

Arguments are checked before anything is sent. In a batch an error stands in its key's place; what concerns the whole
call (no master: Unavailable) is raised. A store belongs to one event loop and one process.
"""

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

from larder import engine_ports, forks, tensors
from larder.arguments import WAIT_S_MAX, Pin, check_get_into, check_put, check_room, or_raise, seconds
from larder.errors import InvalidArgument, LarderError, LeaseExpired, StoreClosed
from larder.keys import Key, Page, batches, encode_key, encode_keys, encode_prefix
from larder.memory import destination
from larder.options import Options, resolve
from larder.parts import Parts
from larder.reads import Landing, array_landing, bytes_landing
from larder.stats import Stats
from larder.writes import PutResult


def connect(
    master: str | None = None,
    *,
    timeout_s: float | None = None,
    verify: bool | None = None,
    transports: Sequence[str] | None = None,
    zone: str | None = None,
    engine_ports: str | None = None,
) -> "Store":
    """A store; nothing is sent before its first call. It may be awaited, and is an async context manager.

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
    """A connection to a Larder cluster. Coroutines may call it concurrently."""

    def __init__(self, options: Options) -> None:
        if options.engine_ports is not None and "engine" in options.transports:
            try:
                engine_ports.use(options.engine_ports)
            except ValueError as error:
                raise InvalidArgument(f"engine_ports is {options.engine_ports}: {error}") from error
        self._options = options
        self._stats = Stats()
        self._parts: Parts | None = None
        self._let_go: weakref.finalize[[], Store] | None = None
        self._closed = False

    def __await__(self) -> Generator[Any, None, Self]:
        yield from ()
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ---- put -------------------------------------------------------------------------------------

    async def put(
        self,
        key: Key,
        buffer: Any,
        *,
        copies: int = 1,
        pin: Pin = None,
        ttl_s: float | None = None,
        replace: bool = False,
    ) -> PutResult:
        """Stores the bytes of a bytes-like object or a CPU tensor. A key that exists stays as it is,
        with the pin and the time to live that it has.

        replace: it gets these bytes, copies, pin and time to live instead. Until the put has succeeded readers get the
        old bytes, then the new, never a mixture; the old ones stay where it fails. There must be room for both. Of two
        at once the last to end wins; the other may be told that the key existed.

        Raises NoSpace, TooLarge, PinRefused, WriteFailed, DeadlineExceeded, Unavailable, InvalidArgument.
        """
        return or_raise(
            (await self.put_many([key], [buffer], copies=copies, pin=pin, ttl_s=ttl_s, replace=replace)).pop()
        )

    async def put_many(
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
        """Stores many objects; a buffer may be a list of buffers, whose bytes are joined.

        pin: "soft" objects are evicted when nothing else is left, "hard" ones never, but a master lets only a share of
        each pool be pinned so. ttl_s: seconds after which they are a miss.
        depths: each block's position in its prompt's chain, for eviction. started: called once, when the master knows
        that all keys are being written. wait_s: seconds to wait for room at most (default: most of the call's time);
        0: an object that finds none now is NoSpace. replace: as in put. Answers per key a PutResult, or the error.
        """
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
        return await self._open().putter.put(
            put.names, put.memories, terms=put.terms, depths=put.depths, started=started, deadline=self._deadline()
        )

    async def put_tensor(
        self,
        key: Key,
        tensor: Any,
        *,
        copies: int = 1,
        pin: Pin = None,
        ttl_s: float | None = None,
        replace: bool = False,
    ) -> PutResult:
        """Stores a CPU torch tensor with its dtype and shape. Raises what put raises, and InvalidArgument."""
        return await self.put(key, tensors.parts(tensor), copies=copies, pin=pin, ttl_s=ttl_s, replace=replace)

    # ---- get -------------------------------------------------------------------------------------

    async def get(self, key: Key) -> bytes | None:
        """The object's bytes, or None for a miss, and only for a miss.

        Raises DataLost, DeadlineExceeded, Unavailable, InvalidArgument.
        """
        return or_raise((await self.get_many([key])).pop())

    async def get_many(self, keys: Sequence[Key]) -> list[bytes | LarderError | None]:
        """Per key the bytes, None for a miss, or the error."""
        answers = await self._get(encode_keys(keys), bytes_landing)
        return [bytes(answer) if isinstance(answer, bytearray) else answer for answer in answers]

    async def get_into(self, key: Key, buffer: Any) -> int | None:
        """Reads the object into a writable buffer; its size in bytes, or None for a miss.

        What the buffer has beyond that stays as it is; one that is shorter than the object is an InvalidArgument. After
        an error the bytes it was to get are undefined, but nothing changes them any more. Raises as get does:
        DataLost, DeadlineExceeded, Unavailable, InvalidArgument.
        """
        return or_raise((await self.get_many_into([key], [buffer])).pop())

    async def get_many_into(self, keys: Sequence[Key], buffers: Sequence[Any]) -> list[int | LarderError | None]:
        """Reads into many buffers; a buffer may be a list of buffers, which are filled in order.

        Answers per key the object's size in bytes, None for a miss, or the error. Memory given to register_buffer is
        written by the engine itself; then the call lasts until the engine has answered, which a frozen node may delay
        beyond the deadline, and is not hedged.
        """
        names, memories = check_get_into(keys, buffers)

        def prepare(index: int, size: int) -> Landing:
            memory = memories[index]
            check_room(memory, size, names[index])
            return Landing(memory.cut(0, size), size, private=False)

        return await self._get(names, prepare)

    async def get_tensor(self, key: Key) -> Any:
        """The torch tensor that put_tensor stored, on the CPU, or None for a miss. Raises as get does:
        DataLost, DeadlineExceeded, Unavailable, and InvalidArgument for what is no tensor."""
        name = encode_key(key)
        array = or_raise((await self._get([name], array_landing)).pop())
        return None if array is None else tensors.unpack(array, name)

    @asynccontextmanager
    async def view(self, key: Key) -> AsyncIterator[memoryview | None]:
        """The object as a read-only memoryview, or None for a miss; no copy where it lies on this host in one slice.

        Valid inside the block only, and as long as the lease. Leaving the block raises LeaseExpired where the lease ran
        out meanwhile: then what was read may be another object's bytes and is to be thrown away.
        """
        name = encode_key(key)
        found = await self._open().getter.view(name, self._deadline())
        if found is None:
            data = await self.get(name)
            if data is None:
                yield None
                return
            with memoryview(data) as memory:
                yield memory
            return
        memory, until = found
        with memory:
            yield memory
        if time.monotonic() >= until:
            raise LeaseExpired("the view outlived its lease", key=name)

    # ---- what is there ---------------------------------------------------------------------------

    async def match(self, keys: Sequence[Key], wait_s: float = 0.0, hold_s: float = 0.0) -> int:
        """How many leading keys are present. Where the run ends at a key that is being written, waits up to wait_s.

        hold_s: these are not evicted for that long, at most a lease; for callers about to get them. Raises Unavailable,
        InvalidArgument.
        """
        names, wait_s = encode_keys(keys), seconds(wait_s, "wait_s", 0, WAIT_S_MAX)
        hold_s = seconds(hold_s, "hold_s", 0, WAIT_S_MAX)
        master = self._open().master
        until = time.monotonic() + wait_s
        deadline = self._deadline() + wait_s
        matched = 0
        for batch in batches(len(names)):
            left_s = max(0.0, until - time.monotonic())
            found = await master.match(names[batch], wait_s=left_s, hold_s=hold_s, deadline=deadline)
            matched += found
            if found < batch.stop - batch.start:
                break
        return matched

    async def exists(self, keys: Sequence[Key]) -> list[bool]:
        """Per key whether it is present. Raises Unavailable, InvalidArgument."""
        names, master, deadline = encode_keys(keys), self._open().master, self._deadline()
        answers: list[bool] = []
        for batch in batches(len(names)):
            answers += await master.exists(names[batch], deadline=deadline)
        return answers

    async def sizes(self, keys: Sequence[Key]) -> list[int | None]:
        """Per key the object's size in bytes, None for a miss. Eviction does not count it as a use of the objects.

        Raises Unavailable, InvalidArgument.
        """
        names, master, deadline = encode_keys(keys), self._open().master, self._deadline()
        answers: list[int | None] = []
        for batch in batches(len(names)):
            answers += await master.sizes(names[batch], deadline=deadline)
        return answers

    def keys(self, prefix: Key = b"") -> AsyncIterator[bytes]:
        """The keys that begin with `prefix`, in order of their bytes; of objects that can be read when they are listed.

        They come in pages of 1,000, so that it may take any number of them, and what is put or removed meanwhile may be
        among them or not. Raises InvalidArgument, and while it runs Unavailable.
        """
        start = encode_prefix(prefix)
        self._open()
        return self._keys(start)

    async def _keys(self, prefix: bytes) -> AsyncIterator[bytes]:
        page = Page(prefix)
        while page.more:
            for key in await self._next_keys(page):
                yield key

    async def _next_keys(self, page: Page) -> list[bytes]:
        rows = await self._open().master.list(page, deadline=self._deadline())
        return [key for key, _, copies in rows if copies]

    async def remove(self, key: Key) -> bool:
        """Forgets an object; whether there was one. Raises Unavailable, InvalidArgument."""
        (answer,) = await self.remove_many([key])
        return answer

    async def remove_many(self, keys: Sequence[Key]) -> list[bool]:
        """Forgets objects, a round trip for every 16,384; per key whether there was one.

        Raises Unavailable, after which any of them may be gone, and InvalidArgument.
        """
        names, master, deadline = encode_keys(keys), self._open().master, self._deadline()
        answers: list[bool] = []
        for batch in batches(len(names)):
            answers += await master.remove(names[batch], deadline=deadline)
        return answers

    # ---- the store itself ------------------------------------------------------------------------

    async def register_buffer(self, buffer: Any) -> None:
        """Lets the transfer engine read and write this memory directly, until unregister_buffer or close.

        Raises InvalidArgument.
        """
        engine, memory = self._open().mover.engine, destination(buffer)
        if engine is not None:
            engine.register(memory)

    async def unregister_buffer(self, buffer: Any) -> None:
        """The reverse; no call that uses the buffer may be under way. Raises InvalidArgument."""
        engine, memory = self._open().mover.engine, destination(buffer)
        if engine is not None:
            engine.unregister(memory)

    def stats(self) -> dict[str, float]:
        """Counters since the store was made: keys, bytes by transport, failovers, hedges, faults, seconds."""
        return self._stats.as_dict()

    async def close(self) -> None:
        """Ends calls under way and lets go of all memory. May be called twice."""
        self._closed = True
        parts, self._parts = self._parts, None
        if self._let_go is not None:
            self._let_go.detach()
        if parts is not None and not forks.inherited():
            await parts.close()

    async def _get(self, names: list[bytes], prepare: Callable[[int, int], Landing]) -> list[Any]:
        return await self._open().getter.get(names, prepare, self._deadline())

    def _deadline(self) -> float:
        return time.monotonic() + self._options.timeout_s

    def _open(self) -> "Parts":
        if self._closed:
            raise StoreClosed("the store is closed")
        forks.check()
        if self._parts is None:
            self._parts = Parts(self._options, self._stats)
            self._let_go = weakref.finalize(self, self._parts.let_go)
            self._let_go.atexit = False
        if self._parts.loop is not asyncio.get_running_loop():
            raise InvalidArgument("this store belongs to another event loop: connect once in each")
        return self._parts
