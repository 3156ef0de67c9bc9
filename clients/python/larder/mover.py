"""Which transport carries which copy: shared memory before the engine, near before far, the least busy node first."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from larder.host import host_id
from larder.places import Copy, Fault, Segment
from larder.stats import Stats
from larder.tasks import together
from larder.transports import Move, Reach, Transport
from larder.transports.copiers import Copiers
from larder.transports.engine import EngineTransport
from larder.transports.shm import SharedMemory

T = TypeVar("T")
TRANSPORTS: Final = ("shm", "engine")


class Bundle(Generic[T]):
    """Moves to or from one segment by one transport, each for a purpose of the caller's."""

    def __init__(self, transport: Transport, segment: Segment) -> None:
        self.transport = transport
        self.segment = segment
        self.moves: list[Move] = []
        self.purposes: list[T] = []


class Bundles(Generic[T]):
    """Moves sorted by where they go."""

    def __init__(self, mover: "Mover") -> None:
        self._mover = mover
        self._bundles: dict[tuple[str, bytes], Bundle[T]] = {}

    def to(self, segment: Segment, transport: Transport) -> Bundle[T]:
        """The bundle that goes there by this transport."""
        bundle = self._bundles.get((transport.name, segment.shm_token))
        if bundle is None:
            bundle = self._bundles[transport.name, segment.shm_token] = Bundle(transport, segment)
        return bundle

    def add(self, bundle: Bundle[T], move: Move, purpose: T) -> None:
        """A move for one of these bundles."""
        bundle.moves.append(move)
        bundle.purposes.append(purpose)
        self._mover.plan(bundle.segment, move.memory.length)

    async def run(self, each: Callable[[Bundle[T]], Coroutine[Any, Any, None]]) -> None:
        """Carries out `each` for all bundles at once, and ends when all have ended."""
        bundles = list(self._bundles.values())
        try:
            if len(bundles) == 1:
                await each(bundles[0])
            else:
                await together([each(bundle) for bundle in bundles])
        finally:
            for bundle in bundles:
                self._mover.plan(bundle.segment, -sum(move.memory.length for move in bundle.moves))


class Mover:
    """The transports of one store."""

    def __init__(self, names: Sequence[str], stats: Stats, zone: str = "") -> None:
        self._zone = zone
        self.copiers = Copiers()
        self.stats = stats
        self.shm = SharedMemory(self.copiers) if "shm" in names else None
        self.engine = EngineTransport(self.copiers) if "engine" in names else None
        self._transports: list[Transport] = [each for each in (self.shm, self.engine) if each is not None]
        self._under_way: dict[bytes, int] = {}  # token -> bytes

    def plan(self, segment: Segment, length: int) -> None:
        """Counts bytes as under way, or, if negative, as done."""
        left = self._under_way.get(segment.shm_token, 0) + length
        if left:
            self._under_way[segment.shm_token] = left
        else:
            del self._under_way[segment.shm_token]

    def way_to(self, segment: Segment) -> Transport | None:
        """The transport to use; None if none leads there."""
        for transport in self._transports:
            if transport.reach(segment) is not Reach.NONE:
                return transport
        return None

    def best(self, copies: Iterable[Copy]) -> tuple[Copy, Transport] | None:
        """The copy to read first, and how; None if there is none within reach."""
        chosen, least = None, (Reach.NONE, 0, 0, 0, 0.0)
        for copy in copies:
            for rank, transport in enumerate(self._transports):
                reach = transport.reach(copy.segment)
                under_way = self._under_way.get(copy.segment.shm_token, 0)
                cost = (reach, rank, self._distance(copy.segment), under_way, random.random())  # noqa: S311  (breaks ties)
                if reach is not Reach.NONE and cost < least:
                    chosen, least = (copy, transport), cost
        return chosen

    async def explain(self, places: Mapping[int, Iterable[Segment]], until: float) -> dict[int, str]:
        """For people: by which addresses each place was to be reached, and why it was not."""
        distinct = {segment.shm_token: segment for segments in places.values() for segment in segments}
        told = await asyncio.gather(*[self._explain_one(segment, until) for segment in distinct.values()])
        why = dict(zip(distinct, told, strict=True))
        return {
            index: "; ".join(dict.fromkeys(why[segment.shm_token] for segment in segments))
            for index, segments in places.items()
        }

    async def _explain_one(self, segment: Segment, until: float) -> str:
        pool = f"its pool {segment.shm_path} cannot be used from this host"
        if self.engine is None:
            return f"node {segment.node_id}: {pool}, and transports leave the engine out"
        if not segment.engine_endpoint:
            return f"node {segment.node_id}: {pool}, and it has no transfer engine"
        why = await self.engine.explain(segment.engine_endpoint, until)
        return f"node {segment.node_id} at {segment.engine_endpoint}: {why}"

    def _distance(self, segment: Segment) -> int:
        if segment.host_id == host_id():
            return 0
        return 1 if self._zone and segment.zone == self._zone else 2

    def count(self, what: str, bundle: Bundle[T], faults: Sequence[Fault | None]) -> None:
        """Adds to the statistics what was moved, and what failed."""
        moved = sum(move.memory.length for move, fault in zip(bundle.moves, faults, strict=True) if fault is None)
        self.stats.add(f"{what}_bytes_{bundle.transport.name}", moved)
        for fault in filter(None, faults):
            self.stats.add(f"{what}_faults_{fault.name.lower()}")

    async def close(self) -> None:
        try:
            for transport in self._transports:
                await transport.close()
        finally:
            self.copiers.close()

    def abandon(self) -> None:
        """close() without an event loop, on any thread, where no call is under way."""
        if self.engine is not None:
            self.engine.abandon()
        self.copiers.close()
