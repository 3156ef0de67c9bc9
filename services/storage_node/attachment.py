"""One attachment of a node to a master, from its welcome to its end: inventory, obey, beat, acknowledge, leave.

The index decides what counts; this module carries it. The master's commands are obeyed strictly in order, except for
what takes a while. Every wait has a deadline; a silent connection is found out by keepalive.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from larder.v1 import types_pb2
from larder.v1.node_pb2 import Ack, Copies, Forget, Heartbeat, InventoryEnd, Leave, MasterMessage, NodeMessage

from services.common.held import HeldCopy
from services.storage_node.core.index import Answer, Index, Outcome, Place
from services.storage_node.masters import RECHECK_S
from services.storage_node.metrics import Metrics
from services.storage_node.stream import MasterStream, StreamError
from services.storage_node.wire import Numbers, WireError, copies_from_wire, copies_to_wire, places_from_wire

logger = logging.getLogger(__name__)

INVENTORY_CHUNK_COPIES: Final = 2_000
_ACKS_WAITING_MAX: Final = 4096
_HEARTBEAT_MS_MAX: Final = 60_000
_SAID_APART: Final = (Outcome.DONE, Outcome.CORRUPT)  # lists of their own in an acknowledgement; the rest has failed
Fetch = Callable[[HeldCopy, types_pb2.Segment, int, float], Awaitable[Answer]]
"""(what to hold, source, offset there, time-out in seconds) -> whether the bytes are here."""
Begin = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
HasWriter = Callable[[Place], bool]
"""Whether a client is writing there by shared memory, or was stopped while it was."""


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the agent waits, in seconds."""

    answer_s: float = 5.0  # for the master to answer the hello, or to take a message
    farewell_s: float = 5.0
    retry_s_min: float = 0.1  # between attempts: doubled up to the maximum, each time with jitter
    retry_s_max: float = 2.0
    refused_s: float = 5.0  # for another process with this node's id to go, before the first attachment
    recheck_s: float = RECHECK_S  # between two checks for another master in charge
    writers_s: float = 0.1  # between two checks for clients that still write what is to be forgotten


@dataclass(slots=True)
class Fate:
    """What a master has decided about this node, remembered for the next one: whether it is being drained."""

    draining: bool = False


class Attachment:
    """One attachment, from its welcome to its end: the master's segment ids hold as long as the stream."""

    def __init__(
        self,
        stream: MasterStream,
        index: Index,
        metrics: Metrics,
        fetcher: Fetch,
        has_writer: HasWriter,
        patience: Patience,
        welcome: MasterMessage,
        fate: Fate,
    ) -> None:
        self._fate = fate
        heartbeat_ms = welcome.welcome.heartbeat_ms
        if not 0 < heartbeat_ms <= _HEARTBEAT_MS_MAX:
            raise WireError(f"a heartbeat every {heartbeat_ms} ms: expected 1 to {_HEARTBEAT_MS_MAX}")
        self._numbers = Numbers.welcomed(welcome.welcome.segment_ids, len(index.capacities_bytes))
        self._heartbeat_s = heartbeat_ms / 1000
        self._stream = stream
        self._index = index
        self._metrics = metrics
        self._fetcher = fetcher
        self._has_writer = has_writer
        self._patience = patience
        self._pinged = asyncio.Event()
        self._acks: asyncio.Queue[tuple[int, Answer]] = asyncio.Queue(_ACKS_WAITING_MAX)
        self._fetches: dict[asyncio.Task[None], Copies] = {}  # under way, and what each is to hold

    async def tell_inventory(self) -> None:
        for chunk in self._index.inventory(INVENTORY_CHUNK_COPIES):
            copies = copies_to_wire(chunk, self._numbers, monotonic_ms())
            await self._stream.send(NodeMessage(inventory=copies))
        await self._stream.send(NodeMessage(inventory_end=InventoryEnd()))

    async def serve(self, stop: asyncio.Event, watch: Coroutine[Any, Any, None]) -> None:
        """Returns at the master's farewell, which answers the leave that follows `stop`, or ends a drain.

        `watch` raises if it must end in favour of another master.
        """
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(work) for work in (self._beat(), self._ack(), self._leave(stop), watch)]
            begun: set[asyncio.Task[None]] = set()

            def begin(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
                task = group.create_task(work)
                begun.add(task)
                task.add_done_callback(begun.discard)
                return task

            await self._obey(stop, begin)
            for helper in [*helpers, *begun]:
                helper.cancel()

    async def _obey(self, stop: asyncio.Event, begin: Begin) -> None:
        """`begin` is for what takes a while: what comes after it does not wait."""
        while True:
            message = await self._stream.receive()
            kind = message.WhichOneof("message")
            answer = self._index.obey(message.epoch)
            if answer.outcome is not Outcome.DONE:
                self._metrics.commands.labels(kind, answer.outcome.value).inc()
                logger.warning("a %s was ignored: %s", kind, answer.reason)
            elif kind == "forget" and message.forget.lengths:
                begin(self._forget_unwritten(message))
            elif kind == "record" or kind == "forget":
                await self._carry_out(kind, message)
            elif kind == "fetch":
                task = begin(self._fetch(message))
                self._fetches[task] = message.fetch.copies
                task.add_done_callback(self._fetches.pop)
            elif kind == "ping":
                self._pinged.set()
            elif kind == "drain":
                self._fate.draining = message.drain.draining
                logger.info("a drain has %s", "begun" if self._fate.draining else "been called off")
            elif kind == "farewell" and (stop.is_set() or self._fate.draining):
                stop.set()  # a node that was drained ends
                return
            else:
                raise StreamError(f"refused: {message.refuse.reason}" if kind == "refuse" else f"a {kind} out of turn")

    async def _carry_out(self, kind: str, message: MasterMessage) -> None:
        """Its epoch was obeyed on arrival; since then the master of this stream may have begun a later one."""
        command_id = message.record.command_id if kind == "record" else message.forget.command_id
        epoch = self._index.epoch
        try:
            if kind == "record":
                answer = self._index.record(
                    epoch, copies_from_wire(message.record.copies, self._numbers, monotonic_ms())
                )
            else:
                await self._end_fetches(message.forget)
                answer = self._index.forget(epoch, places_from_wire(message.forget, self._numbers))
        except WireError as error:
            answer = Answer(Outcome.REJECTED, str(error))
        await self._answer(kind, command_id, answer)

    async def _forget_unwritten(self, message: MasterMessage) -> None:
        """Carried out once no client writes there any more, however long that takes (invariant 7)."""
        try:
            places = places_from_wire(message.forget, self._numbers)
        except WireError:
            places = []  # refused below
        waited = False
        while any(map(self._has_writer, places)):
            if not waited:
                logger.warning("a client that was given up still writes, or was stopped while it did: its space waits")
            waited = True
            await asyncio.sleep(self._patience.writers_s)
        await self._carry_out("forget", message)

    async def _end_fetches(self, forget: Forget) -> None:
        """A fetch whose place is to be forgotten was given up: it may neither land nor be recorded any more."""
        places = set(zip(forget.segment_ids, forget.offsets, forget.write_ids, strict=False))
        ended = [
            task
            for task, copies in self._fetches.items()
            if not places.isdisjoint(zip(copies.segment_ids, copies.offsets, copies.write_ids, strict=False))
        ]
        for task in ended:
            task.cancel()
        if ended:
            await asyncio.wait(ended)  # the transport answers a cancellation when nothing can land any more

    async def _fetch(self, message: MasterMessage) -> None:
        fetch = message.fetch
        try:
            (copy,) = copies_from_wire(fetch.copies, self._numbers, monotonic_ms())
            answer = await self._fetcher(copy, fetch.source, fetch.source_offset, fetch.timeout_ms / 1000)
            if answer.outcome is Outcome.DONE:
                answer = self._index.record(self._index.epoch, [copy])
        except ValueError as error:
            answer = Answer(Outcome.REJECTED, str(error))
        await self._answer("fetch", fetch.command_id, answer)

    async def _answer(self, kind: str, command_id: int, answer: Answer) -> None:
        self._metrics.commands.labels(kind, answer.outcome.value).inc()
        if answer.outcome is not Outcome.DONE:
            logger.error("%s %d was not done: %s", kind, command_id, answer.reason)
        await self._acks.put((command_id, answer))

    async def _ack(self) -> None:
        """One message for everything that was carried out while the previous one was on its way."""
        while True:
            answers = [await self._acks.get()]
            while not self._acks.empty():
                answers.append(self._acks.get_nowait())
            failed = [(number, answer.reason) for number, answer in answers if answer.outcome not in _SAID_APART]
            ack = Ack(
                epoch=self._index.epoch,
                command_ids=[number for number, answer in answers if answer.outcome is Outcome.DONE],
                failed_command_ids=[number for number, _ in failed],
                corrupt_command_ids=[number for number, answer in answers if answer.outcome is Outcome.CORRUPT],
                failed_reasons=[reason for _, reason in failed],
            )
            await self._stream.send(NodeMessage(ack=ack))

    async def _beat(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._pinged.wait()
            self._pinged.clear()
            await self._stream.send(NodeMessage(heartbeat=Heartbeat()))

    async def _leave(self, stop: asyncio.Event) -> None:
        await stop.wait()
        await self._stream.send(NodeMessage(leave=Leave()))
        await asyncio.sleep(self._patience.farewell_s)
        raise StreamError(f"no farewell in {self._patience.farewell_s:g} s")
