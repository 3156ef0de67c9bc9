"""The network: gRPC calls and the nodes' streams over virtual time, with what may happen to them.

A call may be refused, cut before or after it took effect, or land after its retry did; a stream keeps its order, and is
cut or silent. A partition holds messages back, as TCP does, until it ends or the connection is given up.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from services.storage_node.stream import StreamError
from tests.sim.loop import PROCESS, Process
from tests.sim.memory import ENGINE_S

GIVE_UP_S = 0.6  # keepalive: a connection silent for so long is given up
MASTER = "m"
_NO_METADATA = grpc.aio.Metadata()


class Aborted(Exception):
    """What a servicer refused a call with."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: grpc.aio.Metadata) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.trailing = trailing


class Context:
    """As much of gRPC's context as the servicers ask for."""

    def __init__(self) -> None:
        self.trailing = _NO_METADATA

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str]]) -> None:
        self.trailing = grpc.aio.Metadata(*metadata)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Aborted(code, details, self.trailing)

    def peer(self) -> str:
        return "sim"

    def invocation_metadata(self) -> tuple[()]:
        return ()  # its clients know one master


class Call:
    """One attempt of a client at one call."""

    __slots__ = ("client", "future", "loses_reply", "task", "timer")

    def __init__(self, client: Process, future: "asyncio.Future[Any]") -> None:
        self.client = client
        self.future = future
        self.loses_reply = False
        self.task: Any = None
        self.timer: Any = None


class Network:
    """Delays, faults and partitions. `world.master` is the process of the master, if there is one."""

    def __init__(self, world: Any, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.draw = rng.random
        self.counts: Counter[str] = world.counts
        # How bad this seed's network is; all 0 once it is healed.
        self.slow, self.reset, self.lose_reply, self.stall, self.fail = (
            rng.choice((0.0, 0.0, worst / 4, worst)) for worst in (0.06, 0.06, 0.06, 0.05, 0.05)
        )
        self.blocked: dict[frozenset[str], float] = {}
        self.links: list[Link] = []
        self.calls: dict[Call, None] = {}

    def heal(self) -> None:
        """Except partitions: what they hold back arrives when they end."""
        self.slow = self.reset = self.lose_reply = self.stall = self.fail = 0.0

    def delay(self) -> float:
        if self.slow and self.draw() < self.slow:
            return 0.3 * self.draw()
        return 0.0002 + 0.003 * self.draw()

    def free_at(self, one: str, other: str) -> float:
        """When the two will hear of each other again; 0 if they do."""
        if not self.blocked:
            return 0.0
        until = self.blocked.get(frozenset((one, other)), 0.0)
        return until if until > self.world.now else 0.0

    # ---- transfers of the engine -----------------------------------------------------------------

    def transfer_arrives(self, client: Process, node: Process) -> float | None:
        """When a transfer that begins now is carried out; None if never."""
        now = self.world.now
        free = self.free_at(client.name, node.name)
        if free:
            return free + self.delay() if free < now + ENGINE_S else None
        if self.stall and self.draw() < self.stall:
            self.counts["stalled transfers"] += 1
            return now + ENGINE_S * self.draw()
        return now + self.delay()

    def transfer_fails(self) -> bool:
        if self.fail and self.draw() < self.fail:
            self.counts["failed transfers"] += 1
            return True
        return False

    # ---- calls -----------------------------------------------------------------------------------

    async def call(self, client: Process, name: str, request: Any, timeout: float) -> Any:
        loop = self.world.loop
        call = Call(client, loop.create_future())
        call.timer = loop.call_later(timeout, self._expire, call)
        self.calls[call] = None
        self._send(call, name, request)
        try:
            return await call.future
        finally:
            call.timer.cancel()
            self.calls.pop(call, None)

    def _send(self, call: Call, name: str, request: Any) -> None:
        master, now = self.world.master, self.world.now
        free = self.free_at(call.client.name, MASTER)
        if master is None or (free and self.draw() < 0.5):
            self._break(call, self.delay() if master is None else GIVE_UP_S)
            return
        arrives = max(now, free) + self.delay()
        if free > now + GIVE_UP_S or master.paused:
            self._break(call, GIVE_UP_S)
        elif self.reset and self.draw() < self.reset:
            self._break(call, self.delay())
            if self.draw() < 0.5:
                return
            self.counts["calls that land after their retry"] += 1
            arrives += 0.3 * self.draw()
        elif self.lose_reply and self.draw() < self.lose_reply:
            self.counts["lost replies"] += 1
            call.loses_reply = True
        self.world.loop.call_at(arrives, self._arrive, master, name, request, call, context=master.context)

    def _arrive(self, master: Process, name: str, request: Any, call: Call) -> None:
        self.world.trace("call", call.client.name, name)
        call.task = self.world.loop.create_task(self._serve(master, name, request, call))

    async def _serve(self, master: Process, name: str, request: Any, call: Call) -> None:
        try:
            reply = await getattr(master.part.service, name)(request, Context())
        except Aborted as refusal:
            outcome = (None, refusal.code, refusal.details, refusal.trailing)
        except asyncio.CancelledError:
            return
        else:
            outcome = (reply, grpc.StatusCode.UNAVAILABLE, "the connection was cut", _NO_METADATA)
        if call.loses_reply:
            outcome = (None, grpc.StatusCode.UNAVAILABLE, "the connection was cut", _NO_METADATA)
        answered = max(self.world.now, self.free_at(call.client.name, MASTER)) + self.delay()
        self.world.loop.call_at(answered, self._settle, call, *outcome, context=call.client.context)

    def _settle(
        self, call: Call, reply: Any, code: grpc.StatusCode, details: str, trailing: grpc.aio.Metadata = _NO_METADATA
    ) -> None:
        if call.future.done():
            return
        if reply is not None:
            call.future.set_result(reply)
        else:
            call.future.set_exception(grpc.aio.AioRpcError(code, _NO_METADATA, trailing, details))

    def _break(self, call: Call, after: float) -> None:
        """The client sees the connection end."""
        self.world.loop.call_later(
            after, self._settle, call, None, grpc.StatusCode.UNAVAILABLE, "no connection", context=call.client.context
        )

    def _expire(self, call: Call) -> None:
        self._settle(call, None, grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        if call.task is not None and self.draw() < 0.5:  # the server may hear of it
            self.world.loop.call_later(self.delay(), call.task.cancel)

    def master_died(self) -> None:
        for call in list(self.calls):
            self._break(call, self.delay())
        for link in list(self.links):
            link.master_closes(self.delay())

    def master_paused(self) -> None:
        for call in list(self.calls):
            self._break(call, GIVE_UP_S)

    # ---- streams ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def open_stream(self, address: str, send_timeout_s: float) -> AsyncIterator["Link"]:
        """Stands for `services.storage_node.stream.open_stream`."""
        node, master = PROCESS.get(), self.world.master
        await asyncio.sleep(self.delay())
        if master is None or not master.alive or self.free_at(node.name, MASTER):
            raise StreamError("no connection")
        link = Link(self, node, master)
        try:
            yield link
        finally:
            link.node_closes(self.delay())

    def block(self, one: str, other: str, seconds: float) -> None:
        """A partition. Either end may give up a stream across it, each in its own time."""
        self.blocked[frozenset((one, other))] = self.world.now + seconds
        for link in list(self.links):
            if {link.node.name, MASTER} == {one, other} and seconds > GIVE_UP_S and self.draw() < 0.7:
                link.node_loses(GIVE_UP_S + 0.2 * self.draw())
                link.node_closes(GIVE_UP_S + 0.2 * self.draw())


class Link:
    """One attachment of a node: two directions, each in order."""

    def __init__(self, net: Network, node: Process, master: Process) -> None:
        self.net, self.node, self.master = net, node, master
        self.world, self.loop = net.world, net.world.loop
        self._down: asyncio.Queue[Any] = asyncio.Queue()  # arrived at the node
        self._up: asyncio.Queue[Any] = asyncio.Queue()  # arrived at the master
        self._down_at = self._up_at = self.world.now
        self._node_open = self._master_open = True
        self._is_ending = False  # one end was told to go, or will be
        self._task: Any = None
        self.stream: int | None = None
        net.links.append(self)
        self.loop.call_at(self._next_up(), self._accept, context=master.context)

    @property
    def is_ending(self) -> bool:
        """Whether the master has yet to see its end."""
        return self._is_ending and self._master_open and self.master is self.world.master

    # ---- the node's end --------------------------------------------------------------------------

    async def send(self, message: Any) -> None:
        if not self._node_open:
            raise StreamError("the stream has ended")
        self.loop.call_at(self._next_up(), self._arrive_up, message, context=self.master.context)

    async def receive(self) -> Any:
        message = await self._down.get()
        if message is None:
            raise StreamError("it ended the stream")
        return message

    def node_loses(self, after: float) -> None:
        """The node sees the stream end."""
        self._is_ending = True
        self.loop.call_later(after, self._end_down, context=self.node.context)

    def node_closes(self, after: float) -> None:
        """The node ended it or died, which the master sees after what was sent before."""
        self._is_ending = True
        when = max(self._up_at, self.world.now + after)
        self.loop.call_at(when, self._end_up, context=self.master.context)

    def _end_down(self) -> None:
        if self._node_open:
            self._node_open = False
            self._down.put_nowait(None)

    def _arrive_down(self, message: Any) -> None:
        if self._node_open:
            self._down.put_nowait(message)

    def _next_up(self) -> float:
        free = self.net.free_at(self.node.name, MASTER)
        self._up_at = max(self._up_at, self.world.now + self.net.delay(), free)
        return self._up_at

    # ---- the master's end ------------------------------------------------------------------------

    def _accept(self) -> None:
        self._task = self.loop.create_task(self._serve())

    async def _serve(self) -> None:
        try:
            async for message in self.master.part.registry.Attach(self._requests(), Context()):
                self._send_down(message)
        except asyncio.CancelledError:
            pass
        finally:
            self._master_open = False
            self.master_closes(self.net.delay())

    async def _requests(self) -> AsyncIterator[Any]:
        while True:
            yield await self._up.get()

    def _send_down(self, message: Any) -> None:
        free = self.net.free_at(self.node.name, MASTER)
        self._down_at = max(self._down_at, self.world.now + self.net.delay(), free)
        self.loop.call_at(self._down_at, self._arrive_down, message, context=self.node.context)

    def master_closes(self, after: float) -> None:
        """The node sees the end, after what was sent before."""
        if self in self.net.links:
            self.net.links.remove(self)
        when = max(self._down_at, self.world.now + after)
        self.loop.call_at(when, self._end_down, context=self.node.context)

    def _arrive_up(self, message: Any) -> None:
        if self._master_open:
            self.world.trace("up", self.node.name, message.WhichOneof("message"))
            self._up.put_nowait(message)

    def _end_up(self) -> None:
        self._master_open = False
        if self._task is not None:
            self._task.cancel()
