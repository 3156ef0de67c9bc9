"""The transfer engine as a transport, for nodes on any host. Says who is asked when; the pump moves.

A peer is probed before it is first used and after it failed, in a thread of its own: that may take the engine a minute.
A peer that stalls is left alone until the engine has answered for what it still owes.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar, cast

from larder.diagnosis import CONNECT_S, why_unreached
from larder.memory import Memory
from larder.places import Fault, Segment
from larder.tasks import unbroken
from larder.transports import Move, Reach, in_range
from larder.transports.copiers import Copiers
from larder.transports.flights import Group, Peer
from larder.transports.mooncake import (
    Engine,
    EngineUnavailable,
    Identity,
    PortsTaken,
    borrow,
    give_back,
    replace,
    retire,
)
from larder.transports.pump import Pump
from larder.transports.regions import Regions
from larder.transports.staging import Staging

logger = logging.getLogger(__name__)
T = TypeVar("T")

PROBE_S: Final = 1.0
"""A peer that has not answered a probe within this time is passed over until it does."""
DIAGNOSIS_S: Final = 5.0
DIAGNOSES_MAX: Final = 1_024
PORTS_RETRY_S: Final = 10.0
"""How long to do without the engine if its ports are taken."""


class EngineTransport:
    """The transport through `mooncake.engine`; an engine is started when the first move needs one."""

    name = "engine"

    def __init__(self, copiers: Copiers) -> None:
        self._copiers = copiers
        self._regions = Regions()
        self._engines: dict[str, tuple[Engine, Staging]] = {}  # by protocol
        self._starting = asyncio.Lock()
        self._peers: dict[str, _Known] = {}  # by endpoint
        self._pump: Pump | None = None
        self._missing = ""  # why there is no engine
        self._missing_until = float("inf")
        self._diagnoses: dict[str, tuple[float, str]] = {}  # by endpoint: when it was asked, and what was found

    def reach(self, segment: Segment) -> Reach:
        if not segment.engine_endpoint or (self._missing and time.monotonic() < self._missing_until):
            return Reach.NONE
        known = self._peers.get(segment.engine_endpoint)
        return Reach.DOUBTFUL if known is not None and known.is_doubtful() else Reach.GOOD

    async def read(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        return await self._run(segment, moves, until, writing=False)

    async def write(self, segment: Segment, moves: Sequence[Move], until: float) -> list[Fault | None]:
        return await self._run(segment, moves, until, writing=True)

    def can_abandon(self, move: Move) -> bool:
        return move.private or not self._regions.cover(move.memory)

    async def explain(self, endpoint: str, until: float) -> str:
        """In a few words, why nothing gets there; asked at most once per DIAGNOSIS_S."""
        if self._missing:
            return self._missing
        asked_at, said = self._diagnoses.get(endpoint, (-DIAGNOSIS_S, ""))
        now = time.monotonic()
        if now - asked_at < DIAGNOSIS_S:
            return said
        if until <= now:
            return "it did not answer in time"
        said = await why_unreached(endpoint, min(CONNECT_S, until - now))
        if len(self._diagnoses) >= DIAGNOSES_MAX:
            self._diagnoses.clear()
        self._diagnoses[endpoint] = time.monotonic(), said
        return said

    def register(self, memory: Memory) -> None:
        """Opens memory to direct transfers; raises InvalidArgument or EngineUnavailable."""
        self._regions.add(memory)
        for engine, _ in self._engines.values():
            for piece in memory.pieces:
                engine.register(*piece)

    def unregister(self, memory: Memory) -> None:
        """The reverse; no call that uses the memory may be under way."""
        self._regions.remove(memory)
        for engine, _ in self._engines.values():
            for address, _ in memory.pieces:
                engine.unregister(address)

    async def close(self) -> None:
        self.abandon()
        if self._pump is not None:
            await _end_of(self._pump)

    def abandon(self) -> None:
        """close() without an event loop. The engines are lent again once nothing of ours is in the air any more."""
        engines, self._engines = list(self._engines.values()), {}
        if self._pump is not None and engines:
            self._pump.stop(partial(_let_go, engines, self._regions))

    async def _run(self, segment: Segment, moves: Sequence[Move], until: float, *, writing: bool) -> list[Fault | None]:
        if not in_range(segment, moves) or not segment.engine_endpoint:
            return [Fault.UNREACHABLE] * len(moves)
        known, pump = await self._reach(segment, until), self._pump
        if known is None or pump is None:
            return [Fault.LATE if time.monotonic() >= until else Fault.UNREACHABLE] * len(moves)
        faults = await self._carry(pump, known.peer, segment, moves, until, writing=writing)
        if Fault.UNREACHABLE in faults:
            known.answered = False
        return faults

    async def _carry(
        self, pump: Pump, peer: Peer, segment: Segment, moves: Sequence[Move], until: float, *, writing: bool
    ) -> list[Fault | None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Fault | None]] = loop.create_future()

        def done(faults: list[Fault | None]) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(future.set_result, faults)

        def direct(move: Move) -> bool:
            if writing or move.private:
                return not peer.engine.needs_registration or self._regions.cover(move.memory)
            return self._regions.cover(move.memory)

        group = Group(peer, moves, base=segment.engine_base, writing=writing, until=until, direct=direct, done=done)
        pump.start(group)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            group.cancelled = True
            pump.wake()
            await unbroken(future)
            raise

    async def _reach(self, segment: Segment, until: float) -> "_Known | None":
        """The peer, once it has answered a probe; None if it does not, or there is no engine."""
        try:
            known = await self._known(segment)
        except EngineUnavailable as error:
            if str(error) != self._missing:
                logger.warning("no transfers to other hosts: %s", error)
            self._missing = str(error)
            self._missing_until = time.monotonic() + PORTS_RETRY_S if isinstance(error, PortsTaken) else float("inf")
            return None
        self._missing = ""
        if known.answered and not known.peer.stalled:
            return known
        if known.peer.stalled:
            return None
        if known.probe is None or known.probe.done():
            known.probe = known.begin_probe()
        wait_s = min(PROBE_S - known.probing_s(), until - time.monotonic())
        if wait_s > 0:
            await asyncio.wait([known.probe], timeout=wait_s)
        return known if known.answered else None

    async def _known(self, segment: Segment) -> "_Known":
        identity = (segment.shm_token, segment.engine_base)
        known = self._peers.get(segment.engine_endpoint)
        if known is not None and known.identity == identity:
            return known
        async with self._starting:
            engine, staging = self._engines.get(segment.engine_protocol) or await self._start_engine(segment, identity)
            if not engine.meet(segment.engine_endpoint, identity):  # another node under an old name
                replace(engine)
                self._peers = {}
                if self._pump is not None:
                    self._pump.wake()  # it too lets go of peers that owe it nothing
                del known, engine, staging, self._engines[segment.engine_protocol]
                engine, staging = await self._start_engine(segment, identity)
            known = self._peers.get(segment.engine_endpoint)
            if known is None:
                known = _Known(Peer(engine, staging, segment.engine_endpoint), identity)
                self._peers[segment.engine_endpoint] = known
            return known

    async def _start_engine(self, segment: Segment, identity: Identity) -> tuple[Engine, Staging]:
        engine = await _borrowed(partial(borrow, segment.engine_protocol, segment.engine_endpoint, identity))
        for piece in self._regions.pieces():
            engine.register(*piece)
        if self._pump is None:
            self._pump = Pump(self._copiers)
        self._engines[segment.engine_protocol] = engine, Staging(engine.register, engine.unregister)
        return self._engines[segment.engine_protocol]


async def _borrowed(lending: Callable[[], Engine]) -> Engine:
    """Without asyncio's own threads, which take nothing more once the main thread has ended."""
    future = in_daemon_thread(lending)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_give_back_unused)
        raise
    finally:
        del future  # whose failure holds this frame


def _give_back_unused(future: asyncio.Future[Engine]) -> None:
    if not future.cancelled() and future.exception() is None:
        give_back(future.result())


def _let_go(engines: Sequence[tuple[Engine, Staging]], regions: Regions, is_idle: bool) -> None:
    for engine, staging in engines:
        if not is_idle:  # transfers are still in the air, in memory that has to stay known
            retire(engine)
            continue
        staging.clear()
        for address, _ in regions.pieces():
            engine.unregister(address)
        give_back(engine)


async def _end_of(pump: Pump) -> None:
    """Waits a moment for the pump's end. Without a thread: at the end of a process there are none."""
    for _ in range(20):
        if pump.join(0.0):
            return
        await asyncio.sleep(0.01)


class _Known:
    """A peer, and whether it answered when it was last asked."""

    def __init__(self, peer: Peer, identity: Identity) -> None:
        self.peer = peer
        self.identity = identity
        self.answered = False
        self.probe: asyncio.Future[bool] | None = None
        self._probe_began = 0.0

    def probing_s(self) -> float:
        return time.monotonic() - self._probe_began

    def is_doubtful(self) -> bool:
        """Whether it owes what was given up, or an answer to a probe, or gave none."""
        return bool(self.peer.owed) or (self.probe is not None and not self.answered)

    def begin_probe(self) -> asyncio.Future[bool]:
        self._probe_began = time.monotonic()
        probe = in_daemon_thread(lambda: self.peer.engine.probe(self.peer.endpoint))
        probe.add_done_callback(self._probed)
        return probe

    def _probed(self, probe: asyncio.Future[bool]) -> None:
        self.answered = not probe.cancelled() and probe.exception() is None and probe.result()


def in_daemon_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Runs what may block for a minute, so that it holds up neither the loop nor the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def run() -> None:
        result: T | None = None
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="larder-probe", daemon=True).start()
    return future
