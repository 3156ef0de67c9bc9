"""The step: one command in, effects out, atomically. Everything else hangs from here.

`step` runs what time has made due, then the command, then what follows from both: waiting puts and matches, eviction,
and the Forgets for nodes. The same commands at the same times give the same effects (invariant 13).
"""

import heapq

from services.master.core import messages as m
from services.master.core.arguments import Invalid
from services.master.core.calls import Calls, Overloaded
from services.master.core.catalogue import Catalogue
from services.master.core.drain import Drains
from services.master.core.drops import Drops
from services.master.core.ends import Ends
from services.master.core.expiry import Expiry
from services.master.core.extents import Extents
from services.master.core.facts import Facts
from services.master.core.nodes import Nodes
from services.master.core.placing import Placing
from services.master.core.puts import Puts
from services.master.core.reads import Reads
from services.master.core.repair import Repair
from services.master.core.room import Room
from services.master.core.tables import Config, State
from services.master.core.transfers import Transfers
from services.master.core.writes import Writes

ROUNDS_MAX = 64  # of consequences in one step; the rest runs in the next


class Master:
    """Placement, life and death of objects; no I/O."""

    def __init__(self, config: Config, *, epoch: int, now: int = 0, salt: int = 0) -> None:
        """`epoch`: of this master's reign, greater than any before. `now`: ms on any clock that never goes back.

        `salt`: below 2**31, random in its lower bits, and greater than of an earlier reign of the same epoch. Write ids
        begin there: later puts have greater ones, and a client that ends a write of an earlier reign hits none of
        this one's, even if the wall clock gave both the same epoch.
        """
        self.state = State(config, epoch, now, salt)
        self.calls = Calls(self.state)
        self.extents = Extents(self.state)
        self.catalogue = Catalogue(self.state, self.extents)
        self.placing = Placing(self.state)
        self.room = Room(self.state, self.catalogue)
        self.expiry = Expiry(self.state, self.catalogue)
        self.transfers = Transfers(self.state, self.extents, self.catalogue)
        self.repair = Repair(self.state, self.catalogue, self.placing, self.room, self.transfers)
        self.writes = Writes(self.state, self.extents)
        self.puts = Puts(self.state, self.calls, self.placing, self.room, self.writes)
        self.ends = Ends(self.state, self.calls, self.extents, self.catalogue, self.writes, self.repair)
        self.drains = Drains(self.state, self.calls, self.repair)
        self.reads = Reads(self.state, self.calls)
        self.drops = Drops(self.state, self.calls, self.extents, self.catalogue, self.repair)
        self.facts = Facts(self.state, self.calls, self.reads.leases, self.repair, self.puts, self.drains)
        self.nodes = Nodes(self.state, self.extents, self.catalogue, self.repair, self.ends, self.drains)
        self._handlers = {
            m.PutStart: self.puts.start,
            m.PutEnd: self.ends.end,
            m.PutAbort: self.puts.abort,
            m.Lookup: self.reads.lookup,
            m.Release: self.reads.release,
            m.Match: self.reads.match,
            m.Exists: self.reads.exists,
            m.Remove: self.drops.remove,
            m.Report: self.drops.report,
            m.List: self.reads.list,
            m.Stat: self.facts.stat,
            m.Status: self.facts.status,
            m.Drain: self.drains.drain,
            m.Hello: self.nodes.hello,
            m.Inventory: self.nodes.inventory,
            m.InventoryEnd: self.nodes.inventory_end,
            m.Heartbeat: self.nodes.heartbeat,
            m.Ack: self.nodes.ack,
            m.Leave: self.nodes.leave,
            m.Broken: self.nodes.broken,
        }

    def step(self, now: int, command: m.Command) -> list[m.Effect]:
        state = self.state
        assert now >= state.now, (now, state.now)
        gap_ms = now - state.now
        state.now = now
        if gap_ms > 2 * state.config.heartbeat_ms:
            self.nodes.silence.excuse(gap_ms)
        if state.expiring:
            self.expiry.run()
        # What has arrived comes before the time that has passed: a heartbeat that waited its turn is not silence.
        if not isinstance(command, m.Tick):
            self._handle(command)
        due = []  # what these set for now is the next step's: a step must stay short
        while state.timers and state.timers[0][0] <= now:
            due.append(heapq.heappop(state.timers)[2])
        for action in due:
            action()
        self._settle()
        effects, state.effects = state.effects, []
        return effects

    def next_deadline_ms(self) -> int | None:
        """When `step` must be called at the latest, with a Tick if there is nothing else."""
        due = self.state.timers[0][0] if self.state.timers else None
        poll, expiry = self.puts.next_poll_ms(), self.expiry.next_ms()
        return min((when for when in (due, poll, expiry) if when is not None), default=None)

    def report(self, now: int | None = None) -> m.StatusReport:
        """The core at a glance, between two steps; `now`: later than the last, where time has passed since."""
        return self.facts.report(max(now or 0, self.state.now))

    def _handle(self, command: m.Command) -> None:
        try:
            self._handlers[type(command)](command)  # type: ignore[operator]
        except (Invalid, Overloaded) as error:
            assert not isinstance(command, m.NodeCommand | m.Tick), "only clients are told of their mistakes"
            self.calls.refuse(command.call, error)

    def _settle(self) -> None:
        """What follows from the step. Freed room may let a put go on, and a match may be waiting for its keys."""
        state = self.state
        if state.unreached:
            self.nodes.silence.probe_unreached()
        poll = self.puts.next_poll_ms()
        retry = poll is not None  # waiting puts look again in every step, since leases run out by themselves
        for _ in range(ROUNDS_MAX):
            if retry or state.space_freed:
                retry = state.space_freed = False
                self.puts.retry()
            if state.ended_keys:
                self.reads.writes_ended()
            self.room.evict_pressed()
            if not state.space_freed and not state.ended_keys:
                break
        self.repair.pump()
        self.extents.flush_forgets()
