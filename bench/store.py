"""Larder as a mover: one store per variant, all connected to the same cluster of real processes."""

import itertools
import time
from typing import Any

import grpc
import larder
import numpy as np
import numpy.typing as npt
from larder.v1 import master_pb2 as pb
from larder.v1 import master_pb2_grpc
from larder.wire import pack_keys

from bench.limits import Buffers, compare
from demo.cluster import Cluster

# A removed object's space rests until its lease ends; a batch of 256 MiB at 0.3 GB/s still fits.
LEASE_MS = 1_000
FREE_SHARE = 1.5  # batches, so that neither eviction nor a search for room is measured
CALL_DEADLINE_S = 60.0

_numbers = itertools.count()


def start(cluster: Cluster, pool: str) -> None:
    """A master and one storage node."""
    cluster.start_master("--lease-ms", str(LEASE_MS))
    cluster.start_node("node-1", dram=pool)
    cluster.wait_ready()


class Larder:
    """One copy of each object; `destination` is registered, so that the engine writes to it directly."""

    def __init__(
        self, name: str, master: str, transport: str, *, verify: bool, destination: npt.NDArray[np.uint8] | None = None
    ) -> None:
        self.name = name
        self._keys: list[bytes] = []
        self._store = larder.connect(master, timeout_s=CALL_DEADLINE_S, verify=verify, transports=[transport])
        if destination is not None:
            self._store.register_buffer(destination)
        self._transport = transport
        self._channel = grpc.insecure_channel(master)
        self._master: Any = master_pb2_grpc.MasterStub(self._channel)

    def begin(self, count: int, size: int) -> None:
        """New keys, and room for them: the space of removed objects comes back when their leases end."""
        self._keys = [next(_numbers).to_bytes(16, "big") * 3 for _ in range(count)]
        until = time.monotonic() + CALL_DEADLINE_S
        while self._free_bytes() < FREE_SHARE * count * size:
            if time.monotonic() > until:
                raise RuntimeError("the pool does not become free")
            time.sleep(0.05)

    def end(self) -> None:
        request = pb.RemoveRequest(request_id=self._keys[0][:16], keys=pack_keys(self._keys))
        self._master.Remove(request, timeout=CALL_DEADLINE_S)

    def put(self, sources: Buffers) -> None:
        answers = self._store.put_many(self._keys, sources.arrays)
        if not all(isinstance(answer, larder.PutResult) and answer.copies == 1 for answer in answers):
            raise RuntimeError(f"{self.name}: a put failed: {answers[:4]}")

    def get(self, destinations: Buffers) -> None:
        answers = self._store.get_many_into(self._keys, destinations.arrays)
        assert all(answer == length for answer, (_, length) in zip(answers, destinations.pieces, strict=True)), answers[
            :4
        ]

    def check(self, sources: Buffers, destinations: Buffers) -> None:
        """Also checks that the bytes travelled as the name says."""
        moved = self._store.stats()
        if not (moved.get(f"written_bytes_{self._transport}") and moved.get(f"read_bytes_{self._transport}")):
            raise RuntimeError(f"{self.name}: no bytes went by {self._transport}: {moved}")
        compare(sources, destinations)

    def close(self) -> None:
        self._store.close()
        self._channel.close()

    def _free_bytes(self) -> int:
        status = self._master.Status(pb.StatusRequest(), timeout=CALL_DEADLINE_S)
        return sum(int(segment.free_bytes) for node in status.nodes for segment in node.segments)


class LarderFresh(Larder):
    """Gets into new bytes objects."""

    def get(self, destinations: Buffers) -> None:
        answers = self._store.get_many(self._keys)
        if not all(type(answer) is bytes for answer in answers):
            raise RuntimeError(f"{self.name}: a get failed: {answers[:4]}")

    def check(self, sources: Buffers, destinations: Buffers) -> None:
        answers = self._store.get_many(self._keys)
        compare(sources, Buffers([np.frombuffer(answer, np.uint8) for answer in answers if type(answer) is bytes], []))
