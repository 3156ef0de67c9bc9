"""One seed: a cluster, what its clients do, what goes wrong, and how it ends once everything is healed.

The seed draws the cluster's size, the mix of operations and which faults there are at all (a world with every fault at
once never gets far). Times are the product's own proportions, scaled down.
"""

import contextvars
import hashlib
import random
from collections import Counter, deque
from contextlib import suppress
from dataclasses import fields
from typing import Any

from larder.errors import DataLost, LarderError, NoSpace, Unreachable

from services.master.core.tables import Config
from tests.sim.faults import Faults
from tests.sim.loop import Process, SimLoop, Violation, in_process
from tests.sim.memory import ENGINE_S, Pool, token_of
from tests.sim.net import Network
from tests.sim.oracle import Oracle
from tests.sim.parts import ClientPart, MasterPart, NodePart, installed, later_reign, start_node
from tests.sim.repairs import unrepaired

CONFIG = {
    "slice_bytes": 1024,
    "lease_ms": 400,
    "write_ttl_ms": 600,
    "late_write_ms": 1600,
    "heartbeat_ms": 200,
    "record_timeout_ms": 500,
    "silence_ms": 400,
    "probe_ms": 150,
    "repair_after_ms": 300,
    "repair_timeout_ms": 400,
    "lost_ms": 900,
    "partial_ms": 2000,
    "waiting_max": 16,
    "remembered_max": 4096,
    "adopted_per_step_max": 2,
}
FAULTS_S = 4.0  # how long things go wrong
HEALED_S = 12.0  # by then everything is well again
PUTTING: contextvars.ContextVar[dict[bytes, bytes]] = contextvars.ContextVar("putting")
SIZES = (1, 300, 1024, 1025, 2500, 4000)
TIMEOUT_S = 1.5
PINS = (None, None, None, "soft", "hard")
TTLS_S = (None, None, 0.2, 1.0, 2.5)
SLACK_S = 0.7  # how much longer than its time-out a call may take


class World:
    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self._terms_rng = random.Random(f"terms of {seed}")  # apart: other draws are as they were without
        self._replacing_rng = random.Random(f"replacing of {seed}")  # likewise
        self.counts: Counter[str] = Counter()
        self.events: deque[str] = deque(maxlen=4000)
        self._digest = hashlib.blake2b(digest_size=16) if trace else None
        self.loop = SimLoop(self.rng)
        self.stats: list[Any] = []
        self.pools: dict[bytes, Pool] = {}
        self.nodes: dict[str, NodePart] = {}
        self.lives: list[NodePart] = []  # of all nodes, the past ones too
        self.master: Process | None = None
        self.oracle = Oracle(self)
        self.net = Network(self, self.rng)
        self.faults = Faults(self, self.rng)
        self.clients: list[ClientPart] = []
        self.open_ops = 0
        self._putting: dict[bytes, bytes] = {}
        self._reign = (0, 0)
        self._drivers: list[Any] = []

    # ---- the parts -------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.loop._now

    def start_master(self) -> None:
        self._reign = later_reign(self._reign, self.rng, self.loop.rng)
        process = Process("m", "hm", round(50 * self.rng.random(), 3))
        process.part = MasterPart(self, process, self._config, *self._reign)
        self.oracle.watch(process.part.core)
        self.master = process
        self._drivers.append(process.part.driver)

    def start_node(self, name: str) -> None:
        before = self.nodes.get(name)
        process = Process(name, self._hosts[name], round(70 * self._terms_rng.random(), 3))
        incarnation = before.incarnation + 1 if before is not None else 1
        part = NodePart(self, process, name, incarnation, self._capacity)
        self.nodes[name] = part
        self.lives.append(part)
        self.pools[part.pool.token] = part.pool
        start_node(self, part)

    def node_left(self, part: NodePart) -> None:
        """A node that was stopped or drained has left; another life begins soon."""
        self.loop.kill(part.process)
        part.pool.gone_at = self.now
        self.faults.come_back(part.node_id, 0.3)

    def drain(self, name: str, *, cancel: bool) -> None:
        client = self.clients[0]

        async def ask() -> None:
            deadline = self.now + client.process.clock_offset_s + 0.5
            with suppress(LarderError):  # there is no such node, or no master
                await client.store._open().master.drain(name, cancel=cancel, deadline=deadline)

        in_process(client.process, self.loop, ask)

    def start_client(self, index: int) -> None:
        process = Process(f"c{index}", self.rng.choice(("h0", "h1", "hc")), round(100 * self.rng.random(), 3))
        part = ClientPart(process, TIMEOUT_S)
        process.part = part
        if index < len(self.clients):
            self.clients[index] = part
        else:
            self.clients.append(part)

    def trace(self, *what: object) -> None:
        if self._digest is not None:
            line = f"{self.now:8.4f} " + " ".join(map(str, what))
            self.events.append(line)
            self._digest.update(line.encode())

    @property
    def digest(self) -> str:
        assert self._digest is not None
        return self._digest.hexdigest()

    # ---- a whole run -----------------------------------------------------------------------------

    def run(self) -> None:
        """Raises what broke."""
        with installed(self):
            try:
                self._set_up()
                self.loop.run_until(FAULTS_S)
                self.faults.heal()
                self._settle()
                self._final_calls()
                self._take_stock()
            finally:
                self._count()
                for driver in self._drivers:
                    driver.step = _nothing  # what ends below tells nobody
                unseen = self.loop.end()
        if unseen:
            raise Violation(f"an error nobody looked at: {unseen[0]!r}") from unseen[0]

    def _set_up(self) -> None:
        rng = self.rng
        self._has_terms = self._terms_rng.random() < 0.3
        self._replaced_share = self._replacing_rng.choice((0.0, 0.0, 0.3, 0.7))
        self._config = Config(**CONFIG, high_watermark=rng.choice((0.75, 0.95, 1.0)))  # type: ignore[arg-type]
        self._capacity = rng.choice((4096, 8192, 8192, 16384))
        self._keys = [b"k%d" % number for number in range(rng.choice((2, 4, 6, 8)))]
        self._sizes = rng.sample(SIZES, rng.randint(1, 4))
        self._hosts = {"n0": "h0", "n1": "h1", "n2": rng.choice(("h1", "h2"))}
        self.start_master()
        for name in self._hosts:
            self.start_node(name)
        for index in range(2):
            self.start_client(index)
        weights = [rng.choice((1, 3)), rng.choice((1, 3)), 1, rng.choice((0, 1)), rng.choice((0, 1))]
        kinds = rng.choices((self._put, self._get, self._get_into, self._remove, self._ask), weights, k=40)
        for kind in kinds:
            self._at(0.05 + (FAULTS_S - 0.1) * rng.random(), kind)
        self.faults.plan(FAULTS_S)

    def _at(self, when: float, kind: Any) -> None:
        """An operation of some client, in whatever life it is then."""
        index = int(self.rng.random() * len(self.clients))

        def begin() -> None:
            client = self.clients[index]
            in_process(client.process, self.loop, lambda: self._operation(client, kind))

        self.loop.call_at(when, begin)

    # ---- operations ------------------------------------------------------------------------------

    async def _operation(self, client: ClientPart, kind: Any) -> None:
        self.open_ops += 1
        client.open_ops[begun := object()] = None
        asked_at = self.now
        what = kind.__name__[1:]
        self.trace("begin", client.process.name, what)
        error = await kind(client, asked_at)
        self.trace("end", client.process.name, what, error)
        self.counts[what] += 1
        del client.open_ops[begun]
        self.open_ops -= 1
        if self.now - asked_at > TIMEOUT_S + SLACK_S and not self.faults.paused_since(client.process, asked_at):
            raise Violation(f"a {what} took {self.now - asked_at:.3f} s, its time-out is {TIMEOUT_S} s")
        if error is None or isinstance(error, NoSpace):
            return
        self.counts[f"errors of {what}"] += 1
        if isinstance(error, DataLost | Unreachable):
            if self._was_at_hand(error.key, client, asked_at):
                raise Violation(f"a {what} failed while good copies were at hand: {error!r}")
        elif self.faults.were_none(asked_at):
            raise Violation(f"a {what} failed while nothing was wrong: {error!r}")

    async def _put(self, client: ClientPart, asked_at: float) -> Exception | None:
        rng = self.rng
        keys = rng.sample(self._keys, rng.choice((1, 1, 2)))
        values = {key: rng.randbytes(rng.choice(self._sizes)) for key in keys}
        for key, value in values.items():
            self.oracle.history.setdefault(key, set()).add(value)
        PUTTING.set(values)
        copies = rng.choice((1, 2, 2, 3))
        pin, ttl_s = self._terms_rng.choice(PINS), self._terms_rng.choice(TTLS_S)
        terms = {"pin": pin, "ttl_s": ttl_s} if self._has_terms else {}
        replace = self._replacing_rng.random() < self._replaced_share
        self.counts["replacing puts"] += replace
        try:
            answers = await client.store.put_many(keys, list(values.values()), copies=copies, replace=replace, **terms)
        except LarderError as error:
            return error
        return next((answer for answer in answers if isinstance(answer, LarderError)), None)

    async def _get(self, client: ClientPart, asked_at: float) -> Exception | None:
        keys = self.rng.sample(self._keys, self.rng.choice((1, 2)))
        try:
            answers = await client.store.get_many(keys)
        except LarderError as error:
            return error
        for key, answer in zip(keys, answers, strict=True):
            if not isinstance(answer, LarderError):
                self.oracle.got(key, answer, asked_at)
        return next((answer for answer in answers if isinstance(answer, LarderError)), None)

    async def _get_into(self, client: ClientPart, asked_at: float) -> Exception | None:
        key, buffer = self.rng.choice(self._keys), bytearray(self.rng.choice(self._sizes))
        try:
            size = await client.store.get_into(key, buffer)
        except ValueError:
            return None  # the object has another size
        except LarderError as error:
            return error
        self.oracle.got(key, None if size is None else buffer[:size], asked_at)
        return None

    async def _remove(self, client: ClientPart, asked_at: float) -> Exception | None:
        try:
            await client.store.remove(self.rng.choice(self._keys))
        except LarderError as error:
            return error
        return None

    async def _ask(self, client: ClientPart, asked_at: float) -> Exception | None:
        try:
            if self.rng.random() < 0.5:
                await client.store.match(self.rng.sample(self._keys, 2), wait_s=self.rng.choice((0.0, 0.3)))
            else:
                await client.store.exists(self._keys)
        except LarderError as error:
            return error
        return None

    def putting(self) -> dict[bytes, bytes]:
        return PUTTING.get()

    # ---- memory ----------------------------------------------------------------------------------

    def land(self, pool: Pool, offset: int, data: bytes, begun: float) -> None:
        """Bytes land in a pool."""
        late = self.now - begun
        self.counts["late writes"] += late > 0.3
        self.counts["writes later than their time"] += late > ENGINE_S
        self.trace("land", pool.node_id, offset, len(data), round(late, 4))
        self.oracle.accesses.was_written(pool, offset, len(data), begun)
        pool.data[offset : offset + len(data)] = data

    # ---- the healed end --------------------------------------------------------------------------

    def _settle(self) -> None:
        """Let healthy time pass until all is well."""
        end = self.now + HEALED_S
        self.loop.run_until(self.now + 0.3)  # who was paused goes on
        while (trouble := self._trouble()) is not None:
            if self.now >= end:
                raise Violation(f"{HEALED_S:g} s after all faults had gone: {trouble}")
            for name, node in self.master.part.core.state.nodes.items():  # type: ignore[union-attr]
                if node.draining:
                    self.drain(name, cancel=True)
            self.loop.run_until(self.now + 0.1)

    def _trouble(self) -> str | None:
        """What is not well yet (invariants 9 and 11)."""
        assert self.master is not None
        core = self.master.part.core
        state = core.state
        if self.now < max(self.net.blocked.values(), default=0.0) + 0.5:
            return "a partition lasts"
        if any(link.is_ending for link in self.net.links):
            return "a stream ends that a partition broke"
        if any(client.open_ops for client in self.clients):
            return "an operation has not ended"
        for name, life in self.nodes.items():
            node = state.nodes.get(name)
            if node is None or node.incarnation != life.incarnation or not node.segments[0].live:
                return f"node {name} is not attached"
        for what in ("writes", "partial", "draining"):
            if getattr(state, what):
                return f"{what}: not over"
        if core.puts.waiting:
            return "a put waits for room"
        for segment in state.segments.values():
            if segment.gone or segment.quarantined_bytes:
                return f"{segment.quarantined_bytes} bytes of {segment.node.node_id} stay in quarantine"
            if len(self.nodes[segment.node.node_id].index) != segment.copies:
                return f"{segment.node.node_id} and the master count different copies"
        return unrepaired(core)

    def _final_calls(self) -> None:
        """An allocation that fits succeeds, and what is there can be read."""
        client = self.clients[0]
        state = self.master.part.core.state  # type: ignore[union-attr]
        failures: list[object] = []

        async def call() -> None:
            PUTTING.set({b"fits": b"x" * 1000})
            self.oracle.history[b"fits"] = {b"x" * 1000}
            result = await client.store.put(b"fits", b"x" * 1000, copies=3)
            is_pinned = any(segment.pinned_bytes for segment in state.segments.values())  # and may be in the way
            if result.copies != 3 and not is_pinned:
                failures.append(f"a put that fits made {result.copies} copies of 3")
            for key in list(state.objects):
                asked_at, is_spoilt = self.now, self._is_spoilt(key)
                (answer,) = await client.store.get_many([key])
                if not isinstance(answer, LarderError):
                    self.oracle.got(key, answer, asked_at)
                elif not is_spoilt:
                    failures.append(f"{key!r} cannot be read: {answer!r}")
            failures.append(None)

        in_process(client.process, self.loop, call)
        self.loop.run_until(self.now + TIMEOUT_S + 0.5)
        if failures != [None]:
            raise Violation(f"healed, and yet: {failures or 'the last calls do not end'}")

    def _was_at_hand(self, key: bytes | None, client: ClientPart, since: float) -> bool:
        """Whether every slice has had a good copy where the client could read it for all that time."""
        state = self.master.part.core.state if self.master is not None else None
        obj = state.objects.get(key) if state is not None else None
        if obj is None or self.oracle.writes[obj.write_id].stored_at > since:
            return False  # it went with its last good copy, or another put has come since
        for part in obj.slices:
            for copy in part.copies:
                pool = self.pools[token_of(state.segments[copy.segment].info)]
                well = self.faults.were_well(since, client.process.name, pool.node_id)
                was_there = self.oracle.made_at.get((pool.token, copy.offset), 0.0) <= since
                if well and was_there and not pool.is_tainted(copy.offset, copy.offset + part.length):
                    break
            else:
                return False
        return True

    def _is_spoilt(self, key: bytes) -> bool:
        """Whether a fault may have spoilt every copy of a slice: then one error is right."""
        held = [(life, copy) for life in self.lives for copy in life.index._copies[0].values()]
        return any(copy.key == key and life.pool.tainted for life, copy in held)

    def _take_stock(self) -> None:
        """Nothing is left behind."""
        self.oracle.check_answers()
        for client in self.clients:
            parts = client.store._parts
            if parts is None:
                continue
            if parts.background._tasks:
                raise Violation("a client's background task never ended")
            if parts.mover._under_way:
                raise Violation("a client counts bytes as under way, and there are none")
        driver = self.master.part.driver  # type: ignore[union-attr]
        if driver._calls or driver.core.calls._waiting:
            raise Violation("the master keeps calls that nobody waits for")

    def _count(self) -> None:
        for stats in self.stats:
            values = stats.as_dict()
            for name in ("failovers", "hedges", "hedges_won", "rpc_retries", "put_retries"):
                self.counts[name.replace("_", " ")] += int(values.get(name, 0))
        for counters in self.faults.counters():
            for field in fields(counters):
                self.counts[field.name.replace("_", " ")] += getattr(counters, field.name)


def _nothing(command: object) -> None:
    """Stands for a driver's step once the run is over."""
