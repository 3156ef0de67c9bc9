"""The storage node's promises, broken one by one."""

from typing import Any

from larder.transports import Move

from services.storage_node import fetcher
from services.storage_node.attachment import Attachment
from services.storage_node.core.index import Index
from tests.sim.memory import Pool
from tests.sim.mutants.registry import Put, breaks


@breaks("2")
def acknowledge_without_recording(put: Put) -> None:
    original = Index.record

    def record(self: Index, epoch: int, copies: Any) -> Any:
        return original(self, epoch, copies[:-1])

    put(Index, "record", record)


@breaks("7")
def overlook_writers(put: Put) -> None:
    put(Pool, "has_writer", lambda self, place: False)


@breaks("7")
def fetch_on_after_forgetting(put: Put) -> None:
    async def go_on(self: Attachment, forget: Any) -> None:
        """The place may be another put's by the time the fetch lands."""

    put(Attachment, "_end_fetches", go_on)


@breaks("10")
def fetch_unverified(put: Put) -> None:
    put(fetcher, "Move", lambda memory, offset, checksum: Move(memory, offset))
