"""The core with nodes that acknowledge at once, for transcripts: commands in, effects out, at given times."""

from collections.abc import Sequence

from services.master.core import messages as m
from services.master.core.check import check
from services.master.core.master import Master
from services.master.core.messages import Result
from services.master.core.tables import Config

KIB = 1024
CONFIG = Config(
    slice_bytes=4 * KIB,
    lease_ms=1000,
    write_ttl_ms=3000,
    late_write_ms=2000,
    heartbeat_ms=50,
    silence_ms=200,
    lost_ms=1000,
)


class Cluster:
    """The core with nodes that acknowledge at once, unless they are told to hold."""

    def __init__(
        self, nodes: int = 2, capacity: int = 16 * KIB, config: Config = CONFIG, zones: tuple[str, ...] = ()
    ) -> None:
        self.zones = zones
        self.core = Master(config, epoch=7)
        self.now = 0
        self.calls = 0
        self.hold = False
        self.held: list[m.Record | m.Forget | m.Fetch] = []
        self.sent: list[m.Effect] = []
        self.answers: dict[int, m.Answer] = {}
        self.infos = [m.SegmentInfo(capacity, ways=b"%d" % i) for i in range(nodes)]
        for i in range(nodes):
            self.attach(i)

    def attach(
        self,
        i: int,
        stream: int | None = None,
        held: tuple[m.HeldCopy, ...] = (),
        epoch: int = 0,
        draining: bool = False,
    ) -> None:
        number = stream or i + 1
        zone = self.zones[i] if self.zones else ""
        self.step(m.Hello(number, f"n{i}", 1, epoch, f"h{i}", [self.infos[i]], zone, draining))
        self.step(m.Inventory(number, held))
        self.step(m.InventoryEnd(number))

    def step(self, command: m.Command) -> list[m.Effect]:
        effects = self.core.step(self.now, command)
        check(self.core)
        self.sent += effects
        for effect in effects:
            if isinstance(effect, m.Reply):
                self.answers[effect.call] = effect.answer
            elif isinstance(effect, m.Record | m.Forget | m.Fetch):
                self.held.append(effect)
        if not self.hold:
            self.acknowledge()
        return effects

    def acknowledge(self) -> None:
        held, self.held = self.held, []
        for effect in held:
            self.step(m.Ack(effect.stream, 7, [effect.command_id]))

    def pass_time(self, ms: int, *, silent: tuple[int, ...] = ()) -> None:
        for _ in range(ms // 50):
            self.now += 50
            for stream, node in list(self.core.state.streams.items()):
                if int(node.node_id[1:]) not in silent:
                    self.step(m.Heartbeat(stream))
            self.step(m.Tick())

    def call(self) -> int:
        self.calls += 1
        return self.calls

    def start(
        self, key: bytes, size: int, copies: int = 1, wait_ms: int = 0, host: str = "", zone: str = ""
    ) -> m.PutStarted | None:
        call = self.call()
        self.step(m.PutStart(call, call.to_bytes(16, "big"), [key], [size], copies, (), host, wait_ms, zone))
        answer = self.answers.get(call)
        assert answer is None or isinstance(answer, m.PutStarted)
        return answer

    def end(self, started: m.PutStarted, failed: tuple[tuple[int, int, int], ...] = (), wait_ms: int = 0) -> int:
        call = self.call()
        counts = [count for count in started.places.slice_counts if count]
        checksums = list(range(1, sum(counts) + 1))
        self.step(m.PutEnd(call, call.to_bytes(16, "big"), started.write_ids, counts, checksums, failed, wait_ms))
        return call

    def put(self, key: bytes, size: int, copies: int = 1) -> m.PutEnded:
        started = self.start(key, size, copies)
        assert started is not None
        assert started.results == [Result.OK]
        answer = self.answers[self.end(started)]
        assert isinstance(answer, m.PutEnded)
        return answer

    def found(self, key: bytes) -> bool:
        call = self.call()
        self.step(m.Exists(call, [key]))
        answer = self.answers[call]
        assert isinstance(answer, m.Existing)
        return answer.sizes[0] > 0

    def lookup(self, key: bytes, host: str = "", zone: str = "") -> m.Found:
        call = self.call()
        self.step(m.Lookup(call, [key], host, zone))
        answer = self.answers[call]
        assert isinstance(answer, m.Found)
        return answer

    def match(self, keys: Sequence[bytes], wait_ms: int = 0) -> int:
        call = self.call()
        self.step(m.Match(call, keys, wait_ms))
        return call
