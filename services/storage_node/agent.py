"""Keeps the node attached to a master, whichever is in charge, until it is told to stop.

One stream at a time. When it ends, for whatever reason, the agent tries the next address: a node outlives its masters
(invariant 2), and answers each welcome with its whole inventory (8). A master that does not answer is given up.
"""

import asyncio
import logging
import random
from collections.abc import Sequence

from larder.v1.node_pb2 import Hello, NodeMessage

from services.storage_node.attachment import Attachment, Fate, Fetch, HasWriter, Patience
from services.storage_node.core.index import Index, Outcome
from services.storage_node.masters import Masters
from services.storage_node.metrics import Metrics
from services.storage_node.stream import IdTaken, MasterStream, StreamError, open_stream
from services.storage_node.wire import WireError

logger = logging.getLogger(__name__)


class Agent:
    """Keeps this node attached to one of `masters` (HOST:PORT each)."""

    def __init__(
        self,
        masters: Sequence[str],
        hello: Hello,
        index: Index,
        metrics: Metrics,
        fetcher: Fetch,
        has_writer: HasWriter,
        patience: Patience | None = None,
    ) -> None:
        self._masters = Masters(masters, (patience or Patience()).recheck_s)
        self._fetcher = fetcher
        self._has_writer = has_writer
        self._hello = hello
        self._index = index
        self._metrics = metrics
        self._patience = patience or Patience()
        self._fate = Fate()
        self._last_trouble = ""
        self._refused_since: float | None = None  # since when another process has this node's id; while never attached
        self._was_attached = False
        self.attached = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Attaches, again and again, until `stop` is set; then leaves and returns. Sets it itself once drained.

        Raises IdTaken where another process keeps this node's id: no operator meant that.
        """
        patience = self._patience
        retry_s = patience.retry_s_min
        while not stop.is_set():
            begun = asyncio.get_running_loop().time()
            for address in await self._masters.candidates():
                if await self._try(address, stop) or stop.is_set():
                    break
            lasted_s = asyncio.get_running_loop().time() - begun
            retry_s = patience.retry_s_min if lasted_s > 2 * retry_s else min(2 * retry_s, patience.retry_s_max)
            try:
                pause_s = retry_s * random.uniform(0.5, 1.0)  # noqa: S311  (spreads nodes, hides nothing)
                await asyncio.wait_for(stop.wait(), pause_s)
            except TimeoutError:
                continue

    async def _try(self, address: str, stop: asyncio.Event) -> bool:
        """One attempt and, if it succeeds, the whole attachment; returns whether it did."""
        was_attached = False
        try:
            async with open_stream(address, self._patience.answer_s) as stream:
                attachment = await self._attach(stream)
                self._metrics.attaches.labels("attached").inc()
                self._set_attached(True)
                self._last_trouble = ""
                self._was_attached = was_attached = True
                logger.info("attached to the master at %s, epoch %d", address, self._index.epoch)
                await attachment.serve(stop, self._masters.watch(address))
                logger.info("left the master at %s", address)
        except* (StreamError, WireError) as group:
            if not self.attached.is_set():
                self._metrics.attaches.labels("failed").inc()
            what = "lost" if self.attached.is_set() else "cannot attach to"
            trouble = f"{what} the master at {address}: {'; '.join(map(str, group.exceptions))}"
            logger.log(logging.DEBUG if trouble == self._last_trouble else logging.WARNING, "%s", trouble)
            self._last_trouble = trouble
            if taken := group.subgroup(IdTaken):
                self._check_patience(taken.exceptions[0])
            else:
                self._refused_since = None
        finally:
            self._set_attached(False)
        return was_attached

    async def _attach(self, stream: MasterStream) -> Attachment:
        """Hello, welcome, inventory."""
        hello = Hello()
        hello.CopyFrom(self._hello)
        hello.epoch = self._index.epoch
        hello.draining = self._fate.draining
        await stream.send(NodeMessage(hello=hello))
        try:
            async with asyncio.timeout(self._patience.answer_s):
                message = await stream.receive()
        except TimeoutError:
            raise StreamError(f"it did not answer in {self._patience.answer_s:g} s") from None
        kind = message.WhichOneof("message")
        if kind == "refuse" and message.refuse.id_taken:
            raise IdTaken(message.refuse.reason)
        if kind != "welcome":
            raise StreamError(f"refused: {message.refuse.reason}" if kind == "refuse" else f"{kind} before a welcome")
        answer = self._index.obey(message.epoch)
        if answer.outcome is not Outcome.DONE:
            self._metrics.commands.labels(kind, answer.outcome.value).inc()
            raise StreamError(answer.reason)
        attachment = Attachment(
            stream, self._index, self._metrics, self._fetcher, self._has_writer, self._patience, message, self._fate
        )
        await attachment.tell_inventory()
        return attachment

    def _check_patience(self, taken: BaseException) -> None:
        now = asyncio.get_running_loop().time()
        self._refused_since = self._refused_since or now
        if not self._was_attached and now - self._refused_since >= self._patience.refused_s:
            raise taken

    def _set_attached(self, attached: bool) -> None:
        self._metrics.is_attached = attached
        if attached:
            self.attached.set()
        else:
            self.attached.clear()
