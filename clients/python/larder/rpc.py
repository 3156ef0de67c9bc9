"""Calls to the master: protobuf in here, plain values outside. Every call has a deadline.

A call that got no answer is sent again with the same request id (invariant 5), with back-off, to the next address if
there are several, until its deadline: then it is Unavailable, which is never a miss. The deadline is kept here too,
whatever gRPC does. A status tells of the server or of gRPC: that the store was closed only close() can tell.
"""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc
import grpc.aio

from larder import forks
from larder.arguments import Terms
from larder.channel import open_channel
from larder.errors import InvalidArgument, LarderError, NoSpace, StoreClosed, Unavailable
from larder.facts import Known, known
from larder.host import host_id
from larder.keys import PAGE_KEYS, Page
from larder.masters import SEVERAL
from larder.places import Fault, Slice, unpack
from larder.stats import Stats
from larder.v1 import master_pb2 as pb
from larder.v1 import master_pb2_grpc, types_pb2
from larder.v1.types_pb2 import Result
from larder.wire import pack_keys, unpack_keys

_CLOSED: Final = "the store was closed while the call was under way"
_PINS: Final = {None: types_pb2.PIN_NONE, "soft": types_pb2.PIN_SOFT, "hard": types_pb2.PIN_HARD}
_OK: Final = int(Result.RESULT_OK)  # attributes of protobuf's enums are slow
_BACK_OFF_S: Final = 0.02
_BACK_OFF_S_MAX: Final = 0.5
_PUSHBACK_S_MAX: Final = 5.0
_GRACE_S: Final = 0.5
"""How long after a call's deadline gRPC itself may take to report it."""
_PASSING: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
"""Statuses that are retried. CANCELLED without anyone cancelling here: the server ends, or gRPC has too many calls."""
_WAIT_SHARE: Final = 0.75
"""The share of a put's time it may wait for room; and of what is left then, for copies made elsewhere."""
_NONE_SERVES: Final = "check that one of them runs and storage nodes are attached to it, then try again"
_REPLACED_S_MAX: Final = 2.0
"""How long a put waits at most until copies that failed are made elsewhere."""


@dataclass(frozen=True, slots=True)
class Started:
    """Answer to PutStart. Nothing may be written after `until`, on this process's clock."""

    results: Sequence[int]
    write_ids: Sequence[int]
    slices: list[list[Slice]]
    until: float
    shortage: str = ""  # why some found no room, if the pools are not simply full
    remedy: str = ""  # then, what to do


@dataclass(frozen=True, slots=True)
class Ended:
    """Answer to PutEnd, one entry a write."""

    results: Sequence[int]
    copies: Sequence[int]


@dataclass(frozen=True, slots=True)
class Found:
    """Answer to Lookup; a size of 0 is a miss. What is read after `until`, on this process's clock, proves nothing."""

    sizes: Sequence[int]
    slices: list[list[Slice]]
    until: float
    lease: int = 0


@dataclass(frozen=True, slots=True)
class BadCopy:
    """A copy that a reader found bad."""

    key: bytes
    slice_index: int
    segment_id: int
    offset: int
    fault: Fault


class MasterClient:
    """One channel an address; lives on one event loop."""

    def __init__(self, addresses: Sequence[str], stats: Stats, zone: str = "") -> None:
        """Raises larder.forks.Forked."""
        forks.check()
        forks.cannot_cross(self)
        self._closed = False
        self._zone = zone
        self._id = os.urandom(16)
        self.addresses = list(addresses)
        self._stats = stats
        self._channels = [open_channel(address) for address in addresses]
        self._stubs: list[Any] = [_stub(channel) for channel in self._channels]
        self._leader = 0
        self._metadata = ((SEVERAL, str(len(addresses))),) if len(addresses) > 1 else None
        self._said: dict[str, str] = {}  # by address: why it did not serve last time

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._closed = True
        for channel in self._channels:
            await channel.close()

    async def put_start(
        self, keys: Sequence[bytes], sizes: Sequence[int], terms: Terms, *, depths: Sequence[int], deadline: float
    ) -> Started:
        asked_at = time.monotonic()
        wait_s = _WAIT_SHARE * (deadline - asked_at)
        request = pb.PutStartRequest(
            request_id=os.urandom(16),
            keys=pack_keys(keys),
            sizes=sizes,
            copies=terms.copies,
            pin=_PINS[terms.pin],
            ttl_ms=terms.ttl_ms,
            client_id=self._id,
            replace=terms.replace,
            depths=depths,
            host_id=host_id(),
            zone=self._zone,
            wait_ms=max(0, int(1000 * (wait_s if terms.wait_s is None else min(wait_s, terms.wait_s)))),
        )
        reply: pb.PutStartReply = await self._call("PutStart", request, deadline)
        until = asked_at + reply.write_ttl_ms / 1000
        return Started(reply.results, reply.write_ids, unpack(reply.places), until, reply.shortage, reply.remedy)

    async def put_end(
        self,
        write_ids: Sequence[int],
        checksums: Sequence[Sequence[int]],
        failed: Sequence[tuple[int, int, int]],
        *,
        deadline: float,
    ) -> Ended:
        """`checksums` has a list a write, one entry a slice; `failed` is (index into write_ids, slice, copy)."""
        request = pb.PutEndRequest(
            request_id=os.urandom(16),
            write_ids=write_ids,
            slice_counts=[len(column) for column in checksums],
            checksums=[checksum for column in checksums for checksum in column],
            failed_writes=[index for index, _, _ in failed],
            failed_slices=[number for _, number, _ in failed],
            failed_copies=[copy for _, _, copy in failed],
            wait_ms=max(0, int(1000 * min(_REPLACED_S_MAX, _WAIT_SHARE * (deadline - time.monotonic())))),
        )
        reply: pb.PutEndReply = await self._call("PutEnd", request, deadline)
        return Ended(reply.results, reply.copies)

    async def put_abort(self, write_ids: Sequence[int], *, deadline: float) -> None:
        await self._call("PutAbort", pb.PutAbortRequest(request_id=os.urandom(16), write_ids=write_ids), deadline)

    async def lookup(self, keys: Sequence[bytes], *, deadline: float) -> Found:
        asked_at = time.monotonic()
        request = pb.LookupRequest(keys=pack_keys(keys), host_id=host_id(), zone=self._zone)
        reply: pb.LookupReply = await self._call("Lookup", request, deadline)
        slices = unpack(reply.places)
        for result, size, parts in zip(reply.results, reply.sizes, slices, strict=True):
            if (result == _OK) != bool(size) or sum([part.length for part in parts]) != size:
                raise LarderError("the master's answer contradicts itself: slices do not add up to the object's size")
        return Found(reply.sizes, slices, asked_at + reply.lease_ms / 1000, reply.lease_id)

    async def release(self, leases: Sequence[int], *, deadline: float) -> None:
        await self._call("Release", pb.ReleaseRequest(lease_ids=leases), deadline)

    async def match(self, keys: Sequence[bytes], *, wait_s: float, hold_s: float = 0.0, deadline: float) -> int:
        request = pb.MatchRequest(keys=pack_keys(keys), wait_ms=int(1000 * wait_s), hold_ms=int(1000 * hold_s))
        reply: pb.MatchReply = await self._call("Match", request, deadline)
        return reply.matched

    async def exists(self, keys: Sequence[bytes], *, deadline: float) -> list[bool]:
        reply: pb.ExistsReply = await self._call("Exists", pb.ExistsRequest(keys=pack_keys(keys)), deadline)
        return list(reply.exists)

    async def sizes(self, keys: Sequence[bytes], *, deadline: float) -> list[int | None]:
        """Bytes; None for what cannot be read."""
        request = pb.ExistsRequest(keys=pack_keys(keys), sizes=True)
        reply: pb.ExistsReply = await self._call("Exists", request, deadline)
        if len(reply.sizes) != len(keys):
            raise LarderError("the master's answer lacks the sizes: it is of an older version")
        return [size or None for size in reply.sizes]

    async def remove(self, keys: Sequence[bytes], *, deadline: float) -> list[bool]:
        request = pb.RemoveRequest(request_id=os.urandom(16), keys=pack_keys(keys))
        reply: pb.RemoveReply = await self._call("Remove", request, deadline)
        return [result == _OK for result in reply.results]

    async def report(self, bad: Sequence[BadCopy], *, deadline: float) -> int:
        request = pb.ReportRequest(
            keys=pack_keys([each.key for each in bad]),
            slices=[each.slice_index for each in bad],
            segment_ids=[each.segment_id for each in bad],
            offsets=[each.offset for each in bad],
            faults=[pb.FAULT_CORRUPT if each.fault is Fault.CORRUPT else pb.FAULT_UNREACHABLE for each in bad],
        )
        reply: pb.ReportReply = await self._call("Report", request, deadline)
        return reply.dropped

    async def list(self, page: Page, *, deadline: float) -> list[tuple[bytes, int, int]]:
        """The next rows of (key, size, copies); `page` goes on."""
        request = pb.ListRequest(prefix=page.prefix, after=page.after, limit=PAGE_KEYS)
        reply: pb.ListReply = await self._call("List", request, deadline)
        keys = unpack_keys(reply.keys)
        page.after, page.more = keys[-1] if keys else page.after, reply.more
        return list(zip(keys, reply.sizes, reply.copies, strict=True))

    async def stat(self, keys: Sequence[bytes], *, lease: bool = False, deadline: float) -> Known:
        """What is known about objects; it does not count as a use. `lease`: they are about to be read."""
        asked_at = time.monotonic()
        reply: pb.StatReply = await self._call("Stat", pb.StatRequest(keys=pack_keys(keys), lease=lease), deadline)
        return known(keys, reply, asked_at)

    async def status(self, *, deadline: float) -> pb.StatusReply:
        reply: pb.StatusReply = await self._call("Status", pb.StatusRequest(), deadline)
        return reply

    async def drain(self, node_id: str, *, cancel: bool, deadline: float) -> None:
        """Raises InvalidArgument if there is no such node."""
        await self._call("Drain", pb.DrainRequest(node_id=node_id, cancel=cancel), deadline)

    # ---- one call, until it is answered ----------------------------------------------------------

    async def _call(self, name: str, request: Any, deadline: float) -> Any:
        back_off_s = _BACK_OFF_S
        while True:
            left_s = max(deadline - time.monotonic(), 0.001)
            try:
                async with asyncio.timeout(left_s + _GRACE_S):
                    method: Callable[..., Awaitable[Any]] = getattr(self._stubs[self._leader], name)
                    return await method(request, timeout=left_s, metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                code, said, hint_s = error.code(), error.details() or "", _pushback_s(error)
                self._said[self.addresses[self._leader]] = said
            except TimeoutError:
                code, said, hint_s = grpc.StatusCode.DEADLINE_EXCEEDED, "", 0.0
            except asyncio.CancelledError:
                if self._closed and not _is_being_cancelled():
                    raise StoreClosed(_CLOSED) from None
                raise
            except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                if self._closed:
                    raise StoreClosed(_CLOSED) from None
                code, said, hint_s = grpc.StatusCode.UNAVAILABLE, repr(error), 0.0
            if self._closed:
                raise StoreClosed(_CLOSED)
            left_s = deadline - time.monotonic()
            if code not in _PASSING or left_s < _BACK_OFF_S:
                raise self._error(name, code, said)
            spread = random.uniform(0.5, 1.5)  # noqa: S311  (keeps clients apart, not secrets)
            pause_s = min(max(back_off_s * spread, hint_s * (0.5 + spread)), left_s / 2)
            self._stats.add("rpc_retries")
            if code is grpc.StatusCode.UNAVAILABLE:
                self._leader = (self._leader + 1) % len(self._stubs)
            await asyncio.sleep(pause_s)
            back_off_s = min(2 * back_off_s, _BACK_OFF_S_MAX)

    def _error(self, name: str, code: grpc.StatusCode, said: str) -> LarderError:
        master = ",".join(self.addresses)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidArgument(said)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            if name == "PutStart":
                return NoSpace(f"the master {master} takes no more puts: {said}")
            return Unavailable(f"the master {master} is overloaded: {said}")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unavailable(f"the master {master} did not answer {name} in time")
        if code is grpc.StatusCode.UNAVAILABLE:
            if len(self.addresses) > 1:
                each = "; ".join(f"{address}: {self._said.get(address, 'not asked')}" for address in self.addresses)
                return Unavailable(f"no master serves: {each}", remedy=_NONE_SERVES)
            return Unavailable(f"no master answers at {master}: {said}")
        if code is grpc.StatusCode.CANCELLED:
            return Unavailable(f"the master {master} broke {name} off: {said}")
        return Unavailable(f"the master {master} failed to answer {name}: {code.name} {said}")


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _pushback_s(error: grpc.aio.AioRpcError) -> float:
    """How long an overloaded server asks its callers to stay away, bounded; 0 if it does not say."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-retry-pushback-ms" and value.isascii() and str(value).isdecimal():
            return min(int(value) / 1000, _PUSHBACK_S_MAX)
    return 0.0


def _stub(channel: grpc.aio.Channel) -> Any:
    make: Any = master_pb2_grpc.MasterStub  # generated code has no types
    return make(channel)
