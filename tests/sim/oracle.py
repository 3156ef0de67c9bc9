"""What must be true of every step of the core, and of every answer a client gets.

Independent of the product's own bookkeeping where it matters: bytes are compared with what clients put, copies are
looked for in the nodes' indexes and in memory, leases are remembered from the answers that granted them.
"""

import math
from typing import Any

from larder.copying import checksum_of

from services.master.core import messages as m
from services.master.core.check import check
from services.master.core.master import Master
from services.master.core.messages import Pin, Result
from services.master.core.objects import Copy, Object, Slice
from services.master.core.phases import Phase
from tests.sim.accesses import Accesses
from tests.sim.loop import Violation
from tests.sim.memory import Pool, token_of
from tests.sim.repairs import watch_displacing
from tests.sim.replacing import gives_way, note_kept, watch_replacing

STRETCH_S = 1.5  # how late a node may hear how long an object has left, and a new master from the node
MUTATING = {m.PutStart: m.PutStarted, m.PutEnd: m.PutEnded, m.PutAbort: m.PutAborted, m.Remove: m.Removed}


class Write:
    """A put that a master has begun."""

    __slots__ = ("end_asked_at", "key", "pin", "replaces", "slice_count", "stored_at", "ttl_s", "value", "write_id")

    def __init__(self, key: bytes, value: bytes, write_id: int, slice_count: int, command: m.PutStart) -> None:
        self.key = key
        self.value = value
        self.write_id = write_id
        self.slice_count = slice_count
        self.pin, self.ttl_s, self.replaces = command.pin, command.ttl_ms / 1000, command.replace
        self.end_asked_at: list[float] = []  # when its client said that it was written, once for each try
        self.stored_at = math.inf  # when it was first acknowledged


class Oracle:
    """One for all masters of a run."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.values: dict[bytes, dict[bytes, bytes]] = {}  # request id of a PutStart -> key -> value
        self.history: dict[bytes, set[bytes]] = {}  # key -> every value that was ever put under it
        self.writes: dict[int, Write] = {}  # by their ids; one that replaces has two: from its start, and from its end
        self.ended: set[int] = set()  # writes that their client said were written
        self.stored: dict[bytes, dict[int, Write]] = {}  # key -> acknowledged and not known to be gone
        self.replaced: dict[bytes, int] = {}  # key -> the newest write that replaced what was there
        self.kept: dict[int, int] = {}  # write replaced while a node was away that holds it -> that master's epoch
        self.accesses = Accesses(world)
        self.released: set[tuple[bytes, int, int]] = set()  # (token, offset, write id) given up by a master
        self.made_at: dict[tuple[bytes, int], float] = {}  # (token, offset) -> when a master learned of a repair's copy
        self.misses: dict[bytes, float] = {}  # key -> when a master last answered a miss
        self.answers: list[tuple[bytes, Any, int]] = []  # what a get answered, and its checksum then
        self._command: m.Command | None = None  # of this step
        self._why = ""  # an object goes
        self._gone: set[bytes] = set()  # in this step
        self._live: set[str] = set()  # live nodes, when the step began

    # ---- the core --------------------------------------------------------------------------------

    def watch(self, core: Master) -> None:
        """Check every step of a core, and learn why it lets go of what it had."""
        watch_replacing(self, core)
        step, evict, quarantine = core.step, core.room.evict, core.extents.quarantine
        discard, add_copy = core.catalogue.discard, core.catalogue.add_copy
        commands: dict[int, m.ClientCommand] = {}
        answers: dict[tuple[type, bytes], m.Answer] = {}

        def watched_step(now: int, command: m.Command) -> list[m.Effect]:
            try:
                self._command, self._why = command, type(command).__name__
                self._gone.clear()
                self._live = _live_nodes(core)
                self._before(commands, command)
                before = shape_of(core) if isinstance(command, m.Heartbeat | m.Tick) else None
                effects = step(now, command)
                if effects or shape_of(core) != before:  # most heartbeats and ticks change nothing
                    check(core)
                for effect in effects:
                    self.world.trace("    ", effect)
                    self._effect(core, commands, answers, effect)
            except Exception as error:
                self.world.loop.fail(error)
                raise
            return effects

        def watched_evict(obj: Object) -> None:
            self._may_evict(core, obj)
            why, self._why = self._why, "evicted"
            evict(obj)
            self._why = why

        def watched_discard(obj: Object) -> Any:
            self._discarded(core, obj)
            return discard(obj)

        def watched_quarantine(
            segment: Any, offset: int, length: int, write_id: int, *, not_before: int, recorded: bool
        ) -> Any:
            if recorded:
                self.released.add((token_of(segment.info), offset, write_id))
            return quarantine(segment, offset, length, write_id, not_before=not_before, recorded=recorded)

        def watched_add_copy(obj: Object, part: Slice, copy: Copy) -> None:
            self.made_at[token_of(core.state.segments[copy.segment].info), copy.offset] = self.world.now
            add_copy(obj, part, copy)

        core.step = watched_step  # type: ignore[method-assign]
        core.room.evict = watched_evict  # type: ignore[method-assign]
        core.catalogue.discard = watched_discard  # type: ignore[method-assign]
        core.extents.quarantine = watched_quarantine  # type: ignore[method-assign]
        core.catalogue.add_copy = watched_add_copy  # type: ignore[method-assign]
        watch_displacing(core)

    def _before(self, commands: dict[int, m.ClientCommand], command: m.Command) -> None:
        if isinstance(command, m.ClientCommand):
            commands[command.call] = command
        if isinstance(command, m.PutEnd):
            self.ended.update(command.write_ids)
            for write_id in command.write_ids:
                if write_id in self.writes:
                    self.writes[write_id].end_asked_at.append(self.world.now)
        elif isinstance(command, m.Remove):
            for key in command.keys:
                self.stored.pop(key, None)
        elif isinstance(command, m.Release):
            for pool in self.world.pools.values():
                pool.grants = [grant for grant in pool.grants if grant[3] not in command.leases]
        if not isinstance(command, m.Heartbeat | m.Tick):
            self.world.trace("  ", command)

    def _effect(self, core: Master, commands: Any, answers: Any, effect: m.Effect) -> None:
        if not isinstance(effect, m.Reply):
            return
        command, answer = commands.pop(effect.call), effect.answer
        request_id = getattr(command, "request_id", None)
        if request_id is not None and not isinstance(answer, m.Rejected):
            before = answers.setdefault((type(command), request_id), (effect.call, answer))
            if before[1] != answer:
                raise Violation(f"a repeated {type(command).__name__} has another answer: {before[1]} and {answer}")
            if before[0] != effect.call:
                self.world.counts["repeated requests"] += 1
                return
        if isinstance(answer, m.PutStarted):
            self._started(core, command, answer)
        elif isinstance(answer, m.PutEnded):
            self._ended(core, command, answer)
        elif isinstance(answer, m.Found):
            self._found(core, command, answer)

    # ---- puts ------------------------------------------------------------------------------------

    def asks(self, name: str, request: Any) -> None:
        """A client is about to call."""
        if name == "PutStart":
            self.values[request.request_id] = self.world.putting()

    def _started(self, core: Master, command: m.PutStart, answer: m.PutStarted) -> None:
        values = self.values[command.request_id]
        until = self.world.now + core.state.config.write_ttl_ms / 1000
        places, part, copy = answer.places, 0, 0
        columns = zip(command.keys, answer.results, answer.write_ids, places.slice_counts, strict=True)
        for key, result, write_id, count in columns:
            if result is Result.EXISTS and command.replace:
                raise Violation(f"a put that replaces {key!r} is told that it exists")
            if result is Result.EXISTS and command is self._command and key not in self._gone:  # else it had to wait
                obj = core.state.objects.get(key)
                if obj is None or not self._is_offered(core, obj):
                    raise Violation(f"a put of {key!r} is told that it exists, and it cannot be read")
            if not write_id:
                continue
            self.writes.setdefault(write_id, Write(key, values[key], write_id, count, command))
            for _ in range(count):
                for _ in range(places.copy_counts[part]):
                    segment = core.state.segments.get(places.segments[places.copy_segments[copy]].number)
                    if segment is not None:
                        self.accesses.write_until[token_of(segment.info), places.copy_offsets[copy]] = until
                    copy += 1
                part += 1

    def _ended(self, core: Master, command: m.PutEnd, answer: m.PutEnded) -> None:
        """Acknowledged copies are held, with the right bytes (invariants 1 and 2)."""
        for asked_id, result, copies in zip(command.write_ids, answer.results, answer.copies, strict=True):
            if result is Result.EXISTS:
                gives_way(self, self.writes[asked_id])
            if result is not Result.OK:
                continue
            write, obj = self.writes[asked_id], core.state.objects.get(self.writes[asked_id].key)
            write_id = write.write_id
            if write.replaces:
                self.replaced[write.key] = max(self.replaced.get(write.key, 0), write_id)
                note_kept(self, core, write)
            if obj is None or obj.write_id != write_id:
                continue  # it went while others of the batch were recorded
            per_slice = [sum(key[2] == write_id for key in self.released)] * write.slice_count
            for pool, held in self._held(write, self.world.lives):
                per_slice[held.slice_index] += 1
                self._compare(write, pool, held.slice_index, held.offset, held.length, core)
            if min(per_slice) < copies:
                raise Violation(f"a put of {write.key!r} is told of {copies} copies, held are {min(per_slice)}")
            self.stored.setdefault(write.key, {})[write_id] = write
            write.stored_at = min(write.stored_at, self.world.now)

    def _held(self, write: Write, lives: Any) -> list[tuple[Pool, Any]]:
        """The copies of a write that nodes' indexes have."""
        return [
            (life.pool, held)
            for life in lives
            for held in life.index._copies[0].values()
            if held.write_id == write.write_id and held.key == write.key
        ]

    def _compare(self, write: Write, pool: Pool, number: int, offset: int, length: int, core: Master) -> None:
        start = number * core.state.config.slice_bytes
        if pool.data[offset : offset + length] == write.value[start : start + length]:
            return
        if not pool.is_tainted(offset, offset + length):
            raise Violation(f"slice {number} of {write.key!r} on {pool.node_id} at {offset} has other bytes")

    # ---- reads -----------------------------------------------------------------------------------

    def _found(self, core: Master, command: m.Lookup, answer: m.Found) -> None:
        until = self.world.now + answer.lease_ms / 1000
        for key, result in zip(command.keys, answer.results, strict=True):
            if result is not Result.OK:
                self.misses[key] = self.world.now
                self._may_miss(core, key, "is missed", self._live)  # one adopted later in this step comes too late
                continue
            obj = core.state.objects[key]
            write = self.writes.get(obj.write_id)
            if write is None or obj.write_id not in self.ended or write.key != key:
                raise Violation(f"{key!r} is offered as of write {obj.write_id}, which never ended")
            is_back = core.state.epoch > self.kept.get(obj.write_id, core.state.epoch)  # no master knew of it
            if obj.write_id < self.replaced.get(key, 0) and not is_back:
                raise Violation(f"{key!r} is offered as of write {obj.write_id}, which was replaced")
            if write.ttl_s and self.world.now > write.end_asked_at[-1] + write.ttl_s + STRETCH_S:
                raise Violation(f"{key!r} is offered after its time of {write.ttl_s} s")
            self.world.counts["hits"] += 1
            for number, part in enumerate(obj.slices):
                for copy in part.copies:
                    segment = core.state.segments.get(copy.segment)
                    if segment is not None and segment.live:
                        pool = self.world.pools[token_of(segment.info)]
                        self._compare(write, pool, number, copy.offset, part.length, core)
        self._check_places(core, answer, until)

    def _check_places(self, core: Master, answer: m.Found, until: float) -> None:
        """What is offered lies on live nodes and is leased (invariants 7 and 9)."""
        places, copy = answer.places, 0
        for length, count in zip(places.slice_lengths, places.copy_counts, strict=True):
            if not count:
                raise Violation("a slice is offered without a copy")
            for _ in range(count):
                segment = core.state.segments.get(places.segments[places.copy_segments[copy]].number)
                if segment is None or not self._was_live(core, segment):
                    raise Violation("a copy is offered on a node that is not live")
                self._grant(token_of(segment.info), places.copy_offsets[copy], length, until, answer.lease)
                copy += 1

    def _grant(self, token: bytes, offset: int, length: int, until: float, lease: int) -> None:
        pool = self.world.pools[token]
        pool.grants = [grant for grant in pool.grants if grant[0] > self.world.now]
        pool.grants.append((until, offset, offset + length, lease))

    def _is_offered(self, core: Master, obj: Object) -> bool:
        segments = core.state.segments
        return all(
            any(copy.segment in segments and self._was_live(core, segments[copy.segment]) for copy in part.copies)
            for part in obj.slices
        )

    def _was_live(self, core: Master, segment: Any) -> bool:
        """Whether it was live when the step began its command: time passes after that."""
        return segment.live or segment.node.suspect_since == core.state.now

    def _may_miss(self, core: Master, key: bytes, what: str, live: set[str]) -> None:
        """No miss of an acknowledged object while these nodes, if they still live, hold it (invariant 2)."""
        for write in self.stored.get(key, {}).values():
            if write.ttl_s and self.world.now > write.end_asked_at[0] + write.ttl_s - 0.01:
                self.world.counts["objects missed in time"] += 1
                continue
            slices = {held.slice_index for _, held in self._truly_held(core, write, live)}
            if len(slices) == write.slice_count:
                raise Violation(f"{key!r} {what}, and live nodes hold all of write {write.write_id}")

    def _truly_held(self, core: Master, write: Write, live: set[str]) -> list[tuple[Pool, Any]]:
        unknown = {
            (token_of(core.state.segments[transfer.target.segment].info), transfer.target.offset)
            for transfer in core.transfers.under_way.values()
        }  # recorded maybe, and not acknowledged: nobody knows of those copies yet
        lives = []
        for name in _live_nodes(core) & live:
            life = self.world.nodes.get(name)
            if life is not None and core.state.nodes[name].incarnation == life.incarnation:
                lives.append(life)
        return [
            (pool, held)
            for pool, held in self._held(write, lives)
            if (pool.token, held.offset, held.write_id) not in self.released
            and (pool.token, held.offset) not in unknown
            and not pool.is_tainted(held.offset, held.offset + held.length)
        ]

    def _discarded(self, core: Master, obj: Object) -> None:
        """An object may be dropped by eviction or on request, otherwise only if it cannot be read."""
        self._gone.add(obj.key)
        if self._why == "evicted":
            self.stored.get(obj.key, {}).pop(obj.write_id, None)
            return
        write = self.stored.get(obj.key, {}).get(obj.write_id)
        if write is not None:
            self._may_miss(core, obj.key, f"is dropped by {self._why}", _live_nodes(core))
            del self.stored[obj.key][obj.write_id]

    def _may_evict(self, core: Master, obj: Object) -> None:
        """What is pinned hard stays; what is pinned softly goes only if nothing else can."""
        write = self.writes[obj.write_id]
        if write.pin == Pin.HARD:
            raise Violation(f"{obj.key!r} is evicted, and is pinned hard")
        if write.pin == Pin.SOFT:
            self.world.counts["soft pins evicted"] += 1
            holders = {copy.segment for part in obj.slices for copy in part.copies}
            residents = [core.state.segments[number].residents for number in holders]
            if all(any(not other.pin and not core.room.is_read(other) for other in each) for each in residents):
                raise Violation(f"{obj.key!r} is evicted before what is not pinned")

    # ---- clients ---------------------------------------------------------------------------------

    def got(self, key: bytes, value: Any, asked_at: float) -> None:
        """A get's answer: bytes of some put of the key, or a miss that a master told."""
        if value is None:
            if self.misses.get(key, -1.0) < asked_at:
                raise Violation(f"get of {key!r} is a miss that no master said")
        elif bytes(value) not in self.history.get(key, ()):
            raise Violation(f"get of {key!r} has bytes that nobody put: {bytes(value)[:40]!r}")
        else:
            self.answers.append((key, value, checksum_of(memoryview(value))))

    def check_answers(self) -> None:
        """What lands later does not change what was answered."""
        for key, value, checksum in self.answers:
            if checksum_of(memoryview(value)) != checksum:
                raise Violation(f"get of {key!r} was right, and its bytes were changed afterwards")


def _live_nodes(core: Master) -> set[str]:
    return {name for name, node in core.state.nodes.items() if node.phase is Phase.LIVE}


def shape_of(core: Master) -> tuple[object, ...]:
    """Something that changes with everything `check` looks at."""
    state = core.state
    sizes = (len(state.objects), len(state.partial), len(state.writes), len(state.streams), len(state.segments))
    return sizes, [
        (each.live, each.live_bytes, each.reserved_bytes, each.quarantined_bytes, len(each.node.to_forget))
        for each in state.segments.values()
    ]
