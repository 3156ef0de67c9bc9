"""The master: time of put, Match and Lookup over many keys at a small and at a large number of objects, and its memory.

Twice: the core alone, in this process (which best shows what grows with the number of objects), and a real master
with a real storage node, called through gRPC (what a caller waits for). A put here is PutStart and PutEnd up to the
node's acknowledgement, without bytes. Keys have 48 bytes like the vLLM connector's: a namespace and a hash. A prompt's
keys are consecutive puts; random keys are the worst case, each far from the one before in the master's memory. Calls
come in rows without a pause; the first of each row, made after its keys were prepared, is also kept by itself.
"""

import gc
import hashlib
import itertools
import os
import random
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import grpc
import larder
from larder.v1 import master_pb2 as pb
from larder.v1 import master_pb2_grpc
from larder.wire import pack_keys

from bench.bare_rpc import METHOD
from demo.cluster import Cluster
from demo.processes import Process
from services.master.core import messages as m
from services.master.core.allocator import ALIGN_BYTES
from services.master.core.master import Master
from services.master.core.tables import Config

KEYS = 2048  # per call: a long prompt's blocks
ROW = 8  # calls of each kind in one round, one after another
POOL_SPARE = 1.5  # times what the objects take, so that nothing is evicted
RPC_DEADLINE_S = 30.0
HEARTBEAT_MS = 400
RANDOM = ", random keys"
FIRST = ", first of a row"
OPS = ("put", "match", "match" + RANDOM, "lookup", "lookup" + RANDOM)
Times = dict[tuple[str, int, str], list[float]]
"""Seconds of every call, by subject, number of objects and op."""

_NAMESPACE = hashlib.blake2b(b"model", digest_size=16).digest()
_numbers = itertools.count(1)


def key(number: int) -> bytes:
    return _NAMESPACE + hashlib.blake2b(number.to_bytes(8, "big", signed=True), digest_size=32).digest()


def request_id() -> bytes:
    return next(_numbers).to_bytes(16, "big")


class Subject(Protocol):
    objects: int

    @property
    def name(self) -> str: ...

    @property
    def ops(self) -> Sequence[str]: ...

    def put(self, keys: Sequence[bytes]) -> None: ...

    def match(self, keys: Sequence[bytes]) -> int: ...

    def lookup(self, keys: Sequence[bytes]) -> int: ...

    def remove(self, keys: Sequence[bytes]) -> None: ...


class Core:
    """The core alone, and a node that acknowledges at once."""

    name = "core"
    ops = OPS

    def __init__(self, objects: int) -> None:
        self.objects = objects
        self._beat_at = 0
        self._core = Master(Config(), epoch=1, now=_now_ms())
        self._call(m.Hello(1, "node", 1, 0, "host", [m.SegmentInfo(_pool_bytes(objects))]))
        self._call(m.InventoryEnd(1))

    def put(self, keys: Sequence[bytes]) -> None:
        write_ids = self._call(m.PutStart(1, request_id(), keys, [ALIGN_BYTES] * len(keys))).write_ids
        ended = self._call(m.PutEnd(1, request_id(), write_ids, [1] * len(keys), [7] * len(keys)))
        assert ended.copies == [1] * len(keys)

    def match(self, keys: Sequence[bytes]) -> int:
        matched: int = self._call(m.Match(1, keys)).matched
        return matched

    def lookup(self, keys: Sequence[bytes]) -> int:
        return len(self._call(m.Lookup(1, keys)).places.copy_offsets)

    def remove(self, keys: Sequence[bytes]) -> None:
        self._call(m.Remove(1, request_id(), keys))

    def _call(self, command: m.Command) -> Any:
        now = _now_ms()
        if now >= self._beat_at:
            self._core.step(now, m.Heartbeat(1))
            self._beat_at = now + HEARTBEAT_MS
        answer = None
        effects = deque(self._core.step(now, command))
        while effects:
            effect = effects.popleft()
            if isinstance(effect, m.Record | m.Forget):
                epoch = self._core.state.epoch
                effects.extend(self._core.step(now, m.Ack(effect.stream, epoch, [effect.command_id])))
            elif isinstance(effect, m.Reply):
                answer = effect.answer
        assert not isinstance(answer, m.Rejected), answer
        return answer


class Served:
    """A real master with a real storage node."""

    name = "gRPC"
    ops = OPS

    def __init__(self, objects: int, cluster: Cluster) -> None:
        self.objects = objects
        process = cluster.start_master()
        cluster.start_node("node", dram=str(_pool_bytes(objects)))
        cluster.wait_ready()
        self._pid = process.pid
        self._store = larder.connect(cluster.master, timeout_s=RPC_DEADLINE_S)
        self._channel = grpc.insecure_channel(cluster.master)
        self._stub: Any = master_pb2_grpc.MasterStub(self._channel)
        self.put([key(-1)])  # what the first call takes for good belongs to no object
        self._bytes_before = self._bytes()

    @property
    def bytes_per_object(self) -> float:
        """Growth of the master's resident memory per object."""
        return (self._bytes() - self._bytes_before) / self.objects

    def put(self, keys: Sequence[bytes]) -> None:
        start = pb.PutStartRequest(request_id=request_id(), keys=pack_keys(keys), sizes=[ALIGN_BYTES] * len(keys))
        started = self._stub.PutStart(start, timeout=RPC_DEADLINE_S)
        end = pb.PutEndRequest(
            request_id=request_id(),
            write_ids=started.write_ids,
            slice_counts=[1] * len(keys),
            checksums=[7] * len(keys),
        )
        ended = self._stub.PutEnd(end, timeout=RPC_DEADLINE_S)
        assert list(ended.copies) == [1] * len(keys)

    def match(self, keys: Sequence[bytes]) -> int:
        return self._store.match(keys)

    def lookup(self, keys: Sequence[bytes]) -> int:
        found = self._stub.Lookup(pb.LookupRequest(keys=pack_keys(keys)), timeout=RPC_DEADLINE_S)
        return len(list(found.places.copy_offsets))

    def remove(self, keys: Sequence[bytes]) -> None:
        remove = pb.RemoveRequest(request_id=request_id(), keys=pack_keys(keys))
        self._stub.Remove(remove, timeout=RPC_DEADLINE_S)

    def close(self) -> None:
        self._store.close()
        self._channel.close()

    def _bytes(self) -> int:
        status = Path(f"/proc/{self._pid}/status").read_text()
        kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(kib) * 1024


class BareCall:
    """No master and no work: what the call itself costs, with as many bytes."""

    name = "bare gRPC"
    ops = ("match",)

    def __init__(self, objects: int, log_dir: Path) -> None:
        self.objects = objects
        argv: list[str | Path] = [sys.executable, Path(__file__).with_name("bare_rpc.py")]
        self._process = Process(f"bare-rpc-{objects}", argv, log_dir=log_dir, env=os.environ)
        ready = self._process.wait_line(r"bare gRPC ready: (\S+)", RPC_DEADLINE_S)
        self._channel = grpc.insecure_channel(ready[1])
        self._call = self._channel.unary_unary(METHOD)

    def put(self, keys: Sequence[bytes]) -> None:
        """It keeps nothing."""

    def match(self, keys: Sequence[bytes]) -> int:
        self._call(b"".join(keys), timeout=RPC_DEADLINE_S)
        return len(keys)

    def lookup(self, keys: Sequence[bytes]) -> int:
        raise NotImplementedError

    def remove(self, keys: Sequence[bytes]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._channel.close()
        self._process.stop()


class PlainDict:
    """No master at all but a dict, to see what reading memory costs as it grows."""

    name = "plain dict"
    ops = ("match", "match" + RANDOM)

    def __init__(self, objects: int) -> None:
        self.objects = objects
        self._objects: dict[bytes, list[bytes]] = {}

    def put(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._objects[key] = [key]

    def match(self, keys: Sequence[bytes]) -> int:
        objects = self._objects
        for index, key in enumerate(keys):
            if objects.get(key) is None:
                return index
        return len(keys)

    def lookup(self, keys: Sequence[bytes]) -> int:
        raise NotImplementedError

    def remove(self, keys: Sequence[bytes]) -> None:
        raise NotImplementedError


def fill(subject: Subject, say: Callable[[str], None]) -> None:
    say(f"master: {subject.objects:,} objects into the {subject.name}")
    for start in range(0, subject.objects, KEYS):
        subject.put([key(number) for number in range(start, min(start + KEYS, subject.objects))])


def measure(subjects: Sequence[Subject], rounds: int, say: Callable[[str], None]) -> Times:
    """`rounds` rounds over filled subjects, after one to warm up."""
    rng = random.Random(1)
    times: Times = defaultdict(list)
    for number in range(rounds + 1):
        say(f"master: round {number} of {rounds}")
        for subject in subjects:
            for op in subject.ops:
                taken = _timed(subject, op, [_keys(subject, op, rng) for _ in range(ROW)])
                if number:
                    times[subject.name, subject.objects, op] += taken
                    times[subject.name, subject.objects, op + FIRST] += taken[:1]
    return dict(times)


def _timed(subject: Subject, op: str, calls: Sequence[Sequence[bytes]]) -> list[float]:
    """Seconds of each call of a row; keys are made beforehand, so that only the first call meets an idle master."""
    gc.collect(0)
    taken = []
    for keys in calls:
        begun = time.perf_counter()
        if op == "put":
            subject.put(keys)
        else:
            found = subject.match(keys) if op.startswith("match") else subject.lookup(keys)
            assert found == KEYS, (op, found)
        taken.append(time.perf_counter() - begun)
        if op == "put":
            subject.remove(keys)
    return taken


def _keys(subject: Subject, op: str, rng: random.Random) -> list[bytes]:
    numbers: Sequence[int]
    if op == "put":
        numbers = [next(_numbers) + subject.objects for _ in range(KEYS)]
    elif op.endswith(RANDOM):
        numbers = [rng.randrange(subject.objects) for _ in range(KEYS)]
    else:
        start = rng.randrange(subject.objects - KEYS)
        numbers = range(start, start + KEYS)
    return [key(number) for number in numbers]


def p50(times: Times, name: str, objects: int, op: str) -> float:
    """Seconds."""
    return median(times[name, objects, op])


def _pool_bytes(objects: int) -> int:
    return int(POOL_SPARE * (objects + 4 * KEYS) * ALIGN_BYTES)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
