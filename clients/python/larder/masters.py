"""Which of several masters is in charge: the one that has the storage nodes. All are asked at once.

There is no election: a master does not know of others. So whoever names several of them asks which has nodes, and a
master that has none sends callers that name several on to the next. Where two have nodes, the one with more is in
charge, then the one whose reign began later: all nodes that name both judge alike, and join it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio

from larder.channel import open_channel
from larder.v1 import master_pb2 as pb
from larder.v1 import master_pb2_grpc

SEVERAL: Final = "larder-masters"
"""Metadata of a call: how many masters the caller names, if several."""
SURVEY_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One master, as it answered."""

    address: str
    nodes: int = 0  # attached
    epoch: int = 0
    trouble: str = ""  # why it did not answer

    @property
    def rank(self) -> tuple[int, int]:
        return self.nodes, self.epoch


async def survey(addresses: Sequence[str], wait_s: float = SURVEY_S) -> list[Seen]:
    """What each master says about itself, within about `wait_s`."""
    return list(await asyncio.gather(*[_ask(address, wait_s) for address in addresses]))


def in_charge(seen: Sequence[Seen]) -> Seen | None:
    """None if none has nodes."""
    return max((each for each in seen if each.nodes), key=lambda each: each.rank, default=None)


def warnings(seen: Sequence[Seen]) -> list[str]:
    """What an operator should know about the masters that were asked."""
    said: list[str] = []
    having = [each for each in seen if each.nodes]
    if len(having) > 1:
        counts = ", ".join(f"{each.address} ({each.nodes})" for each in having)
        said.append(
            f"several masters have storage nodes: {counts}; each serves its own part only. Nodes that name all of them "
            "join one within seconds: give every node the same --master"
        )
    for each in seen:
        if each.trouble:
            said.append(f"the master at {each.address} does not answer: {each.trouble}")
        elif not each.nodes and having:
            said.append(f"the master at {each.address} answers, but has no storage node: it stands by")
        elif not each.nodes:
            said.append(f"the master at {each.address} has no storage node: nothing can be stored or found there")
    return said


async def _ask(address: str, wait_s: float) -> Seen:
    async with open_channel(address) as channel:
        stub: Any = master_pb2_grpc.MasterStub(channel)
        try:
            reply: pb.StatusReply = await stub.Status(pb.StatusRequest(brief=True), timeout=wait_s)
        except grpc.aio.AioRpcError as error:
            return Seen(address, trouble=error.details() or error.code().name)
    return Seen(address, reply.attached, reply.epoch)
