"""A small world around the real core: real node indexes, bytearrays for memory, messages waiting to be delivered.

Time is a number, hosts are objects. The world knows which bytes each put meant, so it can tell after every step whether
what the master offers, and what a lease still promises, is what some accepted put wrote.
"""

import itertools

from services.master.core import messages as m
from services.master.core.check import check
from services.master.core.master import Master
from services.master.core.objects import Object
from services.master.core.tables import Config
from services.storage_node.core.index import Outcome, Place
from tests.model.parts import Grant, Node, Put, Spot, content

CONFIG = Config(
    slice_bytes=1024,
    lease_ms=200,
    write_ttl_ms=400,
    late_write_ms=300,
    heartbeat_ms=50,
    silence_ms=200,
    probe_ms=100,
    lost_ms=1000,
    repair_after_ms=150,
    repair_timeout_ms=300,
    partial_ms=1500,
    record_timeout_ms=500,
    waiting_max=8,
    remembered_max=64,
    adopted_per_step_max=2,
)


class World:
    def __init__(self, nodes: int = 3, capacity: int = 8192, config: Config = CONFIG) -> None:
        self.config = config
        self.now = 1000
        self.numbers = itertools.count(1)
        self.core = Master(config, epoch=1, now=self.now)
        self.nodes = {f"n{i}": Node(f"n{i}", capacity) for i in range(nodes)}
        self.memory_of: dict[int, tuple[Node, bytearray]] = {}  # the master's number -> the memory it stood for
        self.replies: dict[int, m.Answer] = {}
        self.puts: list[Put] = []
        self.grants: list[Grant] = []
        self.finished: dict[bytes, set[int]] = {}  # key -> write ids of puts that their clients ended
        self.ended: dict[int, list[Put]] = {}  # call -> puts of an unanswered PutEnd
        self.stopped: list[tuple[Spot, bytes]] = []  # clients stopped in the middle of a write by shared memory
        self.patient: set[int] = set()  # calls of PutEnds that wait for copies

    # ---- steps -----------------------------------------------------------------------------------

    def step(self, command: m.Command) -> None:
        evicted = self.core.state.counters.evicted_objects
        effects = self.core.step(self.now, command)
        calm = self.core.state.counters.evicted_objects == evicted
        for effect in effects:
            if isinstance(effect, m.Reply):
                assert effect.call not in self.replies, "answered twice"
                self.replies[effect.call] = effect.answer
                self._note(effect.call, effect.answer, calm)
                continue
            if isinstance(effect, m.Note):
                continue
            node = next((node for node in self.nodes.values() if node.stream == effect.stream), None)
            if node is not None:
                node.to_node.append(effect)
        check(self.core)
        self.verify()

    def pass_time(self, ms: int) -> None:
        end = self.now + ms
        while (due := self.core.next_deadline_ms()) is not None and due <= end:
            self.now = max(self.now, due)
            self.step(m.Tick())
        self.now = end
        self.step(m.Tick())

    def verify(self) -> None:
        """Every offered copy and every copy under a lease holds the bytes of its put."""
        for key, obj in self.core.state.objects.items():
            whole = content(key, obj.write_id, obj.size)
            start = 0
            for part in obj.slices:
                for copy in part.copies:
                    segment = self.core.state.segments[copy.segment]
                    if segment.live:
                        found = self.read(copy.segment, copy.offset, part.length)
                        assert found == whole[start : start + part.length], f"{key!r} at {copy}"
                start += part.length
        self.grants = [grant for grant in self.grants if grant.until > self.now]
        for grant in self.grants:
            for spot, expected in grant.places:
                if spot.node.memory is spot.memory:
                    found = spot.memory[spot.offset : spot.offset + len(expected)]
                    assert found == expected, "bytes changed under a lease"

    def spot(self, segment: int, offset: int) -> Spot:
        return Spot(*self.memory_of[segment], offset)

    def read(self, segment: int, offset: int, length: int) -> bytes:
        return bytes(self.memory_of[segment][1][offset : offset + length])

    def call(self) -> int:
        return next(self.numbers)

    def request_id(self) -> bytes:
        return next(self.numbers).to_bytes(16, "big")

    # ---- clients ---------------------------------------------------------------------------------

    def start(
        self,
        keys: list[bytes],
        sizes: list[int],
        copies: int,
        wait_ms: int = 0,
        host: str = "",
        ttl_ms: int = 0,
        pin: m.Pin = m.Pin.NONE,
    ) -> int:
        call, asked_at = self.call(), self.now
        self.step(m.PutStart(call, self.request_id(), keys, sizes, copies, (), host, wait_ms, "", ttl_ms, pin))
        answer = self.replies.get(call)
        if isinstance(answer, m.PutStarted):
            self.open(answer, keys, sizes, asked_at)
        return call

    def open(self, answer: m.PutStarted, keys: list[bytes], sizes: list[int], asked_at: int) -> None:
        """The client's side of an answer: it counts the write's time from before it asked."""
        part = copy = 0
        places = answer.places
        for key, size, write_id, count in zip(keys, sizes, answer.write_ids, places.slice_counts, strict=True):
            put = Put(write_id, key, size, [], [], asked_at)
            for _ in range(count):
                put.lengths.append(places.slice_lengths[part])
                copies = range(copy, copy + places.copy_counts[part])
                put.places.append(
                    [self.spot(places.segments[places.copy_segments[c]].number, places.copy_offsets[c]) for c in copies]
                )
                copy += places.copy_counts[part]
                part += 1
            if write_id:
                assert sum(put.lengths) == size
                self.puts.append(put)

    def write(self, put: Put, part: int, copy: int) -> None:
        """A copy of a slice lands in memory: a client's before the write's end, an engine's perhaps later."""
        assert self.now < put.asked_at + self.config.write_ttl_ms + self.config.late_write_ms
        self.stop_at(put, part, copy)
        self.wake(-1)
        put.written.add((part, copy))

    def stop_at(self, put: Put, part: int, copy: int) -> None:
        """A client is stopped after it looked at the clock and locked the bytes, and before it wrote any."""
        start = sum(put.lengths[:part])
        data = content(put.key, put.write_id, put.size)[start : start + put.lengths[part]]
        self.stopped.append((put.places[part][copy], data))

    def wake(self, index: int) -> None:
        """A stopped client writes, whatever the time; its locks go, and nodes that waited for it look again."""
        spot, data = self.stopped.pop(index)
        spot.memory[spot.offset : spot.offset + len(data)] = data
        spot.node.to_node.extendleft(spot.node.waiting)
        spot.node.waiting = []
        self.verify()

    def end(self, put: Put, wait_ms: int = 0) -> int:
        """End a put; unwritten copies are reported as failed, and may be waited for."""
        failed = [
            (0, part, copy)
            for part, copies in enumerate(put.places)
            for copy in range(len(copies))
            if (part, copy) not in put.written
        ]
        call = self.call()
        self.ended[call] = [put]
        if wait_ms:
            self.patient.add(call)
        # Whatever the answer: a lost one may have taken effect, as after any cut line.
        self.finished.setdefault(put.key, set()).add(put.write_id)
        checksums = [put.write_id * 100 + part for part in range(len(put.lengths))]
        self.step(m.PutEnd(call, self.request_id(), [put.write_id], [len(put.lengths)], checksums, failed, wait_ms))
        return call

    def lookup(self, keys: list[bytes]) -> m.Found:
        call = self.call()
        self.step(m.Lookup(call, keys, "h0"))
        answer = self.replies[call]
        assert isinstance(answer, m.Found)
        part = copy = 0
        places = answer.places
        for key, result, size, count in zip(keys, answer.results, answer.sizes, places.slice_counts, strict=True):
            spots: list[tuple[Spot, bytes]] = []
            start = 0
            whole = content(key, self.core.state.objects[key].write_id, size) if result is m.Result.OK else b""
            for _ in range(count):
                length = places.slice_lengths[part]
                assert places.copy_counts[part] > 0
                for c in range(copy, copy + places.copy_counts[part]):
                    spot = self.spot(places.segments[places.copy_segments[c]].number, places.copy_offsets[c])
                    spots.append((spot, whole[start : start + length]))
                copy += places.copy_counts[part]
                start += length
                part += 1
            assert start == size
            if result is m.Result.OK:
                assert not 0 < self.core.state.objects[key].expires_at <= self.now, "expired"
                assert self.core.state.objects[key].write_id in self.finished.get(key, set()), "never ended"
                self.grants.append(Grant(self.now + self.config.lease_ms, spots, answer.lease))
        return answer

    def _note(self, call: int, answer: m.Answer, calm: bool) -> None:
        if isinstance(answer, m.PutEnded):
            for put, result, copies in zip(self.ended.pop(call, []), answer.results, answer.copies, strict=True):
                obj = self.core.state.objects.get(put.key)
                # OK means readable now (invariant 2), unless evicted at once, or gone during the wait.
                if result is m.Result.OK and calm and call not in self.patient:
                    assert obj is not None
                    assert self._was_readable(obj) or 0 < obj.expires_at <= self.now
                assert (result is m.Result.OK) == (copies > 0)

    def _was_readable(self, obj: Object) -> bool:
        """Whether it was when the step began: a node that falls silent now is as good as one that dies later."""
        segments = [[self.core.state.segments[copy.segment] for copy in part.copies] for part in obj.slices]
        return all(any(each.live or each.node.suspect_since == self.now for each in part) for part in segments)

    # ---- nodes -----------------------------------------------------------------------------------

    def attach(self, node: Node) -> None:
        if node.stream is not None:
            self.cut(node)
        node.stream = next(self.numbers)
        node.to_node.clear()
        node.waiting.clear()
        node.to_master.clear()
        info = m.SegmentInfo(node.capacity, ways=b"%d" % node.incarnation)
        host = f"h{node.name[1:]}"
        self.step(m.Hello(node.stream, node.name, node.incarnation, node.index.epoch, host, [info], "", node.draining))

    def impose(self, node: Node) -> None:
        """Another process dials with a living node's id, and the node loses nothing by it."""
        own, stream = node.stream, next(self.numbers)
        known = self.core.state.streams.get(own or 0)
        if own is None or known is None:
            return
        self.step(m.Hello(stream, node.name, node.incarnation + 1, 0, "h9", [m.SegmentInfo(node.capacity)]))
        assert self.core.state.streams.get(own) is known, "thrown out by a stranger"
        self.step(m.Heartbeat(own))
        self.step(m.Broken(stream))

    def cut(self, node: Node) -> None:
        """The stream breaks: what was on its way is lost."""
        stream, node.stream = node.stream, None
        node.to_node.clear()
        node.waiting.clear()
        node.to_master.clear()
        if stream is not None:
            self.step(m.Broken(stream))

    def die(self, node: Node) -> None:
        """SIGKILL and a new life with an empty pool."""
        self.cut(node)
        node.incarnation += 1
        node.draining = False
        node.reset()

    def deliver_to_node(self, node: Node) -> None:
        if not node.to_node:
            return
        effect = node.to_node.popleft()
        epoch = self.core.state.epoch
        if isinstance(effect, m.Close | m.Farewell):
            if isinstance(effect, m.Farewell) and node.draining:
                assert node.leaving or not len(node.index), "let go with copies on it"
                node.draining = False
            node.leaving = False
            self.cut(node)
        elif isinstance(effect, m.Draining):
            node.draining = effect.draining
        elif isinstance(effect, m.Welcome):
            assert node.stream is not None
            node.index.obey(epoch)
            node.segments = effect.segments
            self.memory_of[effect.segments[0]] = (node, node.memory)
            held = [copy for chunk in node.index.inventory(100) for copy in chunk]
            node.to_master.append(m.Inventory(node.stream, [copy._replace(segment=node.segments[0]) for copy in held]))
            node.to_master.append(m.InventoryEnd(node.stream))
        elif isinstance(effect, m.Record):
            answer = node.index.record(epoch, [copy._replace(segment=0) for copy in effect.copies])
            assert answer.outcome is Outcome.DONE, answer.reason
            node.to_master.append(m.Ack(effect.stream, epoch, [effect.command_id]))
        elif isinstance(effect, m.Fetch):
            self._fetch(node, effect, epoch)
        elif isinstance(effect, m.Ping):
            node.to_master.append(m.Heartbeat(effect.stream))
        elif isinstance(effect, m.Forget) and self._has_writer(node, effect):
            node.waiting.append(effect)
        elif isinstance(effect, m.Forget):
            node.index.forget(epoch, [Place(0, offset, write_id) for _, offset, write_id in effect.extents])
            node.to_master.append(m.Ack(effect.stream, epoch, [effect.command_id]))
        node.index.check()

    def _has_writer(self, node: Node, forget: m.Forget) -> bool:
        places = [(offset, length) for (_, offset, _), length in zip(forget.extents, forget.lengths, strict=False)]
        return any(
            spot.memory is node.memory and offset < spot.offset + len(data) and spot.offset < offset + length
            for spot, data in self.stopped
            for offset, length in places
        )

    def _fetch(self, node: Node, effect: m.Fetch, epoch: int) -> None:
        """From node to node: the source may be dead by now, or have other bytes, which the checksum tells."""
        source, memory = self.memory_of[effect.source.number]
        copy = effect.copy
        data = memory[effect.source_offset : effect.source_offset + copy.length]
        whole = content(copy.key, copy.write_id, copy.object_size)
        start = copy.slice_index * self.config.slice_bytes
        if source.memory is not memory or data != whole[start : start + copy.length]:
            node.to_master.append(m.Ack(effect.stream, epoch, [], [effect.command_id]))
            return
        node.memory[copy.offset : copy.offset + copy.length] = data
        answer = node.index.record(epoch, [copy._replace(segment=0)])
        assert answer.outcome is Outcome.DONE, answer.reason
        node.to_master.append(m.Ack(effect.stream, epoch, [effect.command_id]))

    def deliver_to_master(self, node: Node) -> None:
        if node.to_master:
            self.step(node.to_master.popleft())

    def restart_master(self) -> None:
        """The master crashes and another begins, knowing nothing. Calls under way are never answered."""
        for node in self.nodes.values():
            node.stream = None
            node.to_node.clear()
            node.waiting.clear()
            node.to_master.clear()
        self.ended.clear()
        self.core = Master(self.config, epoch=self.core.state.epoch + 1, now=self.now)
        check(self.core)

    # ---- healing ---------------------------------------------------------------------------------

    def heal(self, rounds: int = 200) -> None:
        """All are back, and every message is delivered."""
        self.deliver_all()  # perhaps a farewell
        for node in self.nodes.values():
            if node.stream is None or self.core.state.streams.get(node.stream) is None:
                self.attach(node)
        for _ in range(rounds):
            self.deliver_all()
            gone = [node for node in self.nodes.values() if node.stream is None]
            for node in gone:
                self.attach(node)
            if not gone:
                return
        raise AssertionError("nodes never stay")

    def deliver_all(self) -> None:
        for _ in range(1000):
            nodes = [node for node in self.nodes.values() if node.to_node or node.to_master]
            if not nodes:
                return
            for node in nodes:
                self.deliver_to_node(node)
                self.deliver_to_master(node)
        raise AssertionError("messages never end")

    def run(self, ms: int, every_ms: int = 25) -> None:
        """Let healthy time pass."""
        for _ in range(ms // every_ms):
            for node in self.nodes.values():
                if node.stream is not None:
                    self.step(m.Heartbeat(node.stream))
            self.pass_time(every_ms)
            self.heal()
