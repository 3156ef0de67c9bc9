"""What may happen to a master, in any order: the rules that Hypothesis draws from, and how each run must end."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.master.core import messages as m
from tests.model.parts import Grant, content
from tests.model.world import CONFIG, World
from tests.sim.repairs import unrepaired

KEYS = [b"a", b"b", b"c", b"d", b"e", b"f"]
keys = st.sampled_from(KEYS)
sizes = st.sampled_from([1, 300, 1024, 1025, 2500, 5000])
node_names = st.sampled_from(["n0", "n1", "n2"])


class MasterMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        for node in self.world.nodes.values():
            self.world.attach(node)
        self.world.heal()
        self.waiting: dict[int, tuple[list[bytes], list[int], int]] = {}

    @rule(batch=st.lists(st.tuples(keys, sizes), min_size=1, max_size=3), copies=st.integers(1, 3), wait=st.booleans())
    def put_start(self, batch: list[tuple[bytes, int]], copies: int, wait: bool) -> None:
        names, lengths = [key for key, _ in batch], [size for _, size in batch]
        asked_at = self.world.now
        call = self.world.start(names, lengths, copies, wait_ms=300 if wait else 0, host="h1")
        if call not in self.world.replies:
            self.waiting[call] = (names, lengths, asked_at)

    @invariant()
    def open_what_waited(self) -> None:
        for call in [call for call in self.waiting if call in self.world.replies]:
            answer = self.world.replies[call]
            names, lengths, asked_at = self.waiting.pop(call)
            if isinstance(answer, m.PutStarted):
                self.world.open(answer, names, lengths, asked_at)

    @precondition(lambda self: self.world.puts)
    @rule(data=st.data())
    def write_one_copy(self, data: st.DataObject) -> None:
        put = data.draw(st.sampled_from(self.world.puts))
        part = data.draw(st.integers(0, len(put.places) - 1))
        copy = data.draw(st.integers(0, len(put.places[part]) - 1))
        if self.world.now < put.asked_at + CONFIG.write_ttl_ms:
            self.world.write(put, part, copy)

    @precondition(lambda self: self.world.puts)
    @rule(data=st.data(), everything=st.booleans(), wait=st.sampled_from([0, 0, 100, 1000]))
    def put_end(self, data: st.DataObject, everything: bool, wait: int) -> None:
        put = data.draw(st.sampled_from(self.world.puts))
        self.world.puts.remove(put)
        if everything and self.world.now < put.asked_at + CONFIG.write_ttl_ms:
            for part, copies in enumerate(put.places):
                for copy in range(len(copies)):
                    self.world.write(put, part, copy)
        self.world.end(put, wait)

    @precondition(lambda self: self.world.puts)
    @rule(data=st.data())
    def abandon_then_land_late(self, data: st.DataObject) -> None:
        """The client gives up, and the engine still delivers what was under way."""
        put = data.draw(st.sampled_from(self.world.puts))
        self.world.puts.remove(put)
        alive = self.world.now < put.asked_at + CONFIG.write_ttl_ms
        call = self.world.call()
        self.world.step(m.PutAbort(call, self.world.request_id(), [put.write_id]))
        if alive:
            self.world.pass_time(data.draw(st.sampled_from([0, 100, CONFIG.late_write_ms - 1])))
            self.world.write(put, 0, 0)

    @precondition(lambda self: self.world.puts)
    @rule(data=st.data())
    def stop_in_the_middle(self, data: st.DataObject) -> None:
        """A client that writes by shared memory is stopped, for however long."""
        put = data.draw(st.sampled_from(self.world.puts))
        if self.world.now < put.asked_at + CONFIG.write_ttl_ms:
            self.world.puts.remove(put)
            self.world.stop_at(put, 0, 0)

    @precondition(lambda self: self.world.stopped)
    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        self.world.wake(data.draw(st.integers(0, len(self.world.stopped) - 1)))

    @rule(names=st.lists(keys, min_size=1, max_size=6))
    def lookup(self, names: list[bytes]) -> None:
        self.world.pass_time(0)  # else what the core put off, such as an adoption, could come between the two
        found = self.world.lookup(names)
        call = self.world.call()
        self.world.step(m.Match(call, names))
        matched = self.world.replies[call]
        assert isinstance(matched, m.Matched)
        hits = [result is m.Result.OK for result in found.results]
        assert matched.matched == (hits.index(False) if False in hits else len(hits))

    @precondition(lambda self: any(grant.lease for grant in self.world.grants))
    @rule(data=st.data(), again=st.booleans())
    def release(self, data: st.DataObject, again: bool) -> None:
        """A read has ended: what it was promised may go, but not what others were."""
        world = self.world
        lease = data.draw(st.sampled_from([grant.lease for grant in world.grants if grant.lease]))
        world.grants = [grant for grant in world.grants if grant.lease != lease]
        call = world.call()
        world.step(m.Release(call, [lease, lease, lease + 1_000] if again else [lease]))
        assert world.replies[call] == m.Released()

    @rule(names=st.lists(keys, min_size=1, max_size=3), hold=st.integers(1, 2 * CONFIG.lease_ms))
    def match_holding(self, names: list[bytes], hold: int) -> None:
        """What it found stays as it is that long."""
        world = self.world
        call = world.call()
        world.step(m.Match(call, names, 0, hold))
        matched = world.replies[call]
        assert isinstance(matched, m.Matched)
        self.promise(names[: matched.matched], min(hold, CONFIG.lease_ms))

    def promise(self, names: list[bytes], ms: int, lease: int = 0) -> None:
        """The live copies of these stay as they are that long."""
        world = self.world
        for obj in map(world.core.state.objects.__getitem__, names):
            whole, start, spots = content(obj.key, obj.write_id, obj.size), 0, []
            for part in obj.slices:
                bytes_here = whole[start : start + part.length]
                live = [copy for copy in part.copies if world.core.state.segments[copy.segment].live]
                spots += [(world.spot(*copy), bytes_here) for copy in live]
                start += part.length
            world.grants.append(Grant(world.now + ms, spots, lease))

    @rule(names=st.lists(keys, min_size=1, max_size=3), wait=st.integers(0, 200))
    def match_waiting(self, names: list[bytes], wait: int) -> None:
        self.world.step(m.Match(self.world.call(), names, wait))

    @rule(key=keys)
    def remove(self, key: bytes) -> None:
        self.world.step(m.Remove(self.world.call(), self.world.request_id(), [key]))

    @rule(key=keys)
    def report_corrupt(self, key: bytes) -> None:
        obj = self.world.core.state.objects.get(key)
        if obj is not None:
            segment, offset = obj.slices[0].copies[0]
            self.world.step(m.Report(self.world.call(), [key], [0], [segment], [offset], [m.Fault.CORRUPT]))

    @rule(key=keys)
    def report_unreachable(self, key: bytes) -> None:
        obj = self.world.core.state.objects.get(key)
        if obj is not None:
            segment, offset = obj.slices[0].copies[0]
            self.world.step(m.Report(self.world.call(), [key], [0], [segment], [offset], [m.Fault.UNREACHABLE]))

    @rule(
        batch=st.lists(st.tuples(keys, sizes), min_size=1, max_size=3),
        copies=st.integers(1, 3),
        deliver=st.booleans(),
        ttl_ms=st.sampled_from([0, 0, 0, 1, 300, 2000]),
        pin=st.sampled_from([*m.Pin, m.Pin.NONE, m.Pin.NONE]),
    )
    def put(self, batch: list[tuple[bytes, int]], copies: int, deliver: bool, ttl_ms: int, pin: m.Pin) -> None:
        """A put as it usually goes; the nodes may have recorded it or not yet."""
        names, lengths = [key for key, _ in batch], [size for _, size in batch]
        before = len(self.world.puts)
        call = self.world.start(names, lengths, copies, host="h1", ttl_ms=ttl_ms, pin=pin)
        assert call in self.world.replies
        for put in self.world.puts[before:]:
            for part, places in enumerate(put.places):
                for copy in range(len(places)):
                    self.world.write(put, part, copy)
            self.world.end(put)
        del self.world.puts[before:]
        if deliver:
            self.world.deliver_all()

    @rule(name=node_names, to_master=st.booleans())
    def deliver_one(self, name: str, to_master: bool) -> None:
        node = self.world.nodes[name]
        (self.world.deliver_to_master if to_master else self.world.deliver_to_node)(node)

    @rule()
    def deliver_all(self) -> None:
        self.world.deliver_all()

    @rule(ms=st.sampled_from([1, 30, 100, 250, 500]))
    def calm(self, ms: int) -> None:
        self.world.heal()
        self.world.run(ms)

    @rule(ms=st.sampled_from([1, 100, 250, 700, 2000]))
    def silence(self, ms: int) -> None:
        self.world.pass_time(ms)

    @rule(name=node_names, kind=st.sampled_from(["none"] * 8 + ["cut", "cut", "attach", "die", "leave", "restart"]))
    def fault(self, name: str, kind: str) -> None:
        world, node = self.world, self.world.nodes[name]
        if kind == "cut":
            world.cut(node)
        elif kind == "attach":
            world.attach(node)
        elif kind == "die":
            world.die(node)
        elif kind == "leave" and node.stream is not None:
            node.leaving = True
            world.step(m.Leave(node.stream))
        elif kind == "restart":
            self.waiting.clear()
            world.restart_master()

    @rule(name=node_names, cancel=st.sampled_from([False, True, True]))
    def drain(self, name: str, cancel: bool) -> None:
        if name in self.world.core.state.nodes:
            self.world.step(m.Drain(self.world.call(), name, cancel))

    def end_drains(self) -> None:
        """Draining nodes have gone by now, unless something on them finds no room elsewhere."""
        world, state = self.world, self.world.core.state
        while draining := [node for node in state.nodes.values() if node.draining]:
            node = draining[0]
            held = [obj for segment in node.segments for obj in segment.residents]
            assert held, "an empty node was not let go"
            for obj in held:
                is_too_large = any(not world.core.room.takers(part) for part in obj.slices)
                assert is_too_large or obj.pin == m.Pin.HARD, "a drain is stuck"
            world.step(m.Drain(world.call(), node.node_id, cancel=True))
        world.run(1000)

    def teardown(self) -> None:
        """After faults heal: nothing is stuck, nothing leaked, and an allocation that fits succeeds (invariant 11)."""
        world = self.world
        while world.stopped:
            world.wake(0)
        world.heal()
        world.run(3000)
        self.end_drains()
        state = world.core.state
        assert not state.writes, "a write is stuck"
        assert not state.partial, "a partial object is stuck"
        assert not world.core.puts.waiting, "a put is stuck"
        assert not world.ended, "a PutEnd was never answered"
        assert unrepaired(world.core) is None
        for segment in state.segments.values():
            assert segment.live
            assert segment.quarantined_bytes == 0
            node, _ = world.memory_of[segment.number]
            assert len(node.index) == segment.copies, "node and master disagree"
        call = world.start([b"fits"], [1024], 3, wait_ms=100)
        world.run(400)
        assert isinstance(world.replies[call], m.PutStarted)
        assert world.replies[call].results == [m.Result.OK]


class WithDoubles(MasterMachine):
    @rule(name=node_names)
    def impose(self, name: str) -> None:
        self.world.impose(self.world.nodes[name])

    @rule(names=st.lists(keys, min_size=1, max_size=3), lease=st.booleans())
    def stat(self, names: list[bytes], lease: bool) -> None:
        """It knows all that a lookup finds, and promises as much if asked to."""
        self.world.pass_time(0)
        call = self.world.call()
        self.world.step(m.Stat(call, names, lease))
        told = self.world.replies[call]
        assert isinstance(told, m.Known)
        there = {name for name, result in zip(names, told.results, strict=True) if result is m.Result.OK}
        self.promise(list(there) if told.lease else [], told.lease_ms, told.lease)
        found = self.world.lookup(names).results
        assert {name for name, result in zip(names, found, strict=True) if result is m.Result.OK} <= there
