"""What goes wrong and when: drawn from the seed before the run, undone by `heal`."""

import contextvars
import random
from typing import Any

from tests.sim.loop import Process
from tests.sim.net import MASTER

AFTERMATH_S = 1.5  # an operation this soon after a fault may still suffer from it


class Faults:
    """The hand that breaks things."""

    def __init__(self, world: Any, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self._since: dict[Process, float] = {}  # process -> since when it is paused, or when it was last woken
        self._hurt: dict[str, float] = {}  # the same by name of a part, for it alone
        self._last = 0.0  # the end of the last fault, aftermath included
        self._freezing = 0.0
        self._counters: list[Any] = []
        self._on = True

    def plan(self, seconds: float) -> None:
        rng = self.rng
        kinds = [
            self.kill_node, self.kill_node, self.pause_node, self.pause_node, self.cut_stream, self.cut_stream,
            self.part_node, self.part_client, self.part_transfer, self.part_nodes, self.kill_master, self.pause_master,
            self.pause_client, self.kill_client, self.flip, self.flip, self.leave, self.drain,
        ]  # fmt: skip
        chosen = rng.sample(kinds, rng.randint(2, 6))
        self._freezing = rng.choice((0.0, 0.02, 0.1, 0.3))
        for _ in range(rng.choice((0, 4, 8, 12))):
            fault = rng.choice(chosen)
            self.world.loop.call_at(0.1 + (seconds - 0.1) * rng.random(), self._strike, fault)

    def _strike(self, fault: Any) -> None:
        if not self._on:
            return
        self.world.trace("fault", fault.__name__)
        if fault() is not False:
            self.world.counts[fault.__name__] += 1

    def lasts(self, seconds: float, *names: str) -> None:
        """Something is wrong for that long, with the parts named, or with all."""
        until = self.world.now + seconds + AFTERMATH_S
        self._last = max(self._last, until)
        for name in names or ("all",):
            self._hurt[name] = max(self._hurt.get(name, 0.0), until)

    def were_well(self, since: float, *names: str) -> bool:
        """Whether these could reach each other from `since` until now."""
        net = self.world.net
        return not (net.slow or net.stall or net.fail) and all(
            since > self._hurt.get(name, 0.0) for name in ("all", *names)
        )

    def were_none(self, since: float) -> bool:
        """Whether nothing was wrong from `since` until now."""
        net = self.world.net
        return since > self._last and not (net.slow or net.reset or net.lose_reply or net.stall or net.fail)

    def counters(self) -> list[Any]:
        master = self.world.master
        return [*self._counters, *([master.part.core.state.counters] if master is not None else [])]

    def heal(self) -> None:
        """No new faults; everybody is back."""
        self._on = False
        self._freezing = 0.0
        world, net = self.world, self.world.net
        if net.slow or net.reset or net.lose_reply or net.stall or net.fail:
            self.lasts(0.0)
        net.heal()
        for process in list(self._since):
            self._wake(process)
        if world.master is None:
            world.start_master()
        for name, life in list(world.nodes.items()):
            if not life.process.alive:
                world.start_node(name)

    # ---- nodes -----------------------------------------------------------------------------------

    def _node(self) -> Any:
        return self.world.nodes[self.rng.choice(list(self.world.nodes))]

    def kill_node(self) -> Any:
        """SIGKILL: its memory is gone. Usually it comes back with nothing."""
        life, rng = self._node(), self.rng
        if not life.process.alive:
            return False
        self.world.loop.kill(life.process)
        life.pool.gone_at = self.world.now
        if rng.random() < 0.8:  # else its host is gone, and nobody says so
            for link in list(self.world.net.links):
                if link.node is life.process:
                    link.node_closes(self.world.net.delay())
        self.come_back(life.node_id, rng.choice((0.03, 0.2, 1.0, 9.0)))
        return True

    def come_back(self, name: str, after: float) -> None:
        def start() -> None:
            if not self.world.nodes[name].process.alive:
                self.world.start_node(name)

        self.lasts(after, name)
        self._later(after, start)

    def _later(self, after: float, action: Any, *args: Any) -> None:
        """Whoever may be paused or dead by then."""
        self.world.loop.call_later(after, action, *args, context=contextvars.Context())

    def leave(self) -> Any:
        """SIGTERM: it leaves in good order, and another life begins."""
        life = self._node()
        if not life.process.alive or life.process.paused:
            return False
        self.world.loop.call_soon(life.stop.set, context=life.process.context)
        self.lasts(0.5, life.node_id)
        return True

    def drain(self) -> None:
        """An operator lets a node go, or calls that off."""
        name, cancel = self._node().node_id, self.rng.random() < 0.2
        self.lasts(1.0, name)
        self.world.drain(name, cancel=cancel)

    def pause_node(self) -> Any:
        return self.pause(self._node().process)

    def cut_stream(self) -> Any:
        """The node's connection to the master breaks; each end sees it in its own time."""
        links = self.world.net.links
        if not links:
            return False
        link = self.rng.choice(links)
        self.lasts(0.3, link.node.name)
        link.node_loses(self.rng.choice((0.001, 0.3)) * self.rng.random())
        link.node_closes(self.rng.choice((0.001, 0.3)) * self.rng.random())
        return True

    # ---- the network -----------------------------------------------------------------------------

    def _part(self, one: str, other: str) -> None:
        seconds = self.rng.choice((0.1, 0.5, 1.0, 2.5))
        self.lasts(seconds, *{one, other} - {MASTER})
        self.world.net.block(one, other, seconds)

    def part_node(self) -> None:
        self._part(self._node().node_id, MASTER)

    def part_client(self) -> None:
        self._part(self.rng.choice(self.world.clients).process.name, MASTER)

    def part_transfer(self) -> None:
        self._part(self.rng.choice(self.world.clients).process.name, self._node().node_id)

    def part_nodes(self) -> None:
        one, other = self.rng.sample(list(self.world.nodes), 2)
        self._part(one, other)

    # ---- the master ------------------------------------------------------------------------------

    def kill_master(self) -> Any:
        """SIGKILL; the next one knows nothing."""
        world = self.world
        master = world.master
        if master is None:
            return False
        self._counters.append(master.part.core.state.counters)
        world.loop.kill(master)
        world.master = None
        world.net.master_died()

        def start() -> None:
            if world.master is None:
                world.start_master()

        after = self.rng.choice((0.01, 0.1, 1.0))
        self.lasts(after + 3.0)  # until what looks free has rested
        self._later(after, start)
        return True

    def pause_master(self) -> Any:
        if self.world.master is None or not self.pause(self.world.master):
            return False
        self.world.net.master_paused()
        return True

    # ---- clients ---------------------------------------------------------------------------------

    def pause_client(self) -> Any:
        return self.pause(self.rng.choice(self.world.clients).process)

    def kill_client(self) -> bool:
        """What it was doing stays half done."""
        index = int(self.rng.random() * len(self.world.clients))
        self.lasts(0.0, self.world.clients[index].process.name)
        self.world.loop.kill(self.world.clients[index].process)
        self.world.start_client(index)
        return True

    def freezes_writer(self, process: Process) -> bool:
        """Whether a client is stopped right before it copies into a pool."""
        if not self._freezing or process.name[0] != "c":
            return False
        if self.rng.random() >= self._freezing:
            return False
        self.world.counts["writers frozen"] += 1
        return True

    # ---- processes and bytes ---------------------------------------------------------------------

    def pause(self, process: Process) -> bool:
        """SIGSTOP, and SIGCONT somewhat later."""
        if process.paused or not process.alive:
            return False
        seconds = self.rng.choice((0.05, 0.3, 0.8, 1.3, 3.0))
        self.world.loop.pause(process)
        self._since[process] = self.world.now + seconds
        self.lasts(seconds, *({process.name} - {MASTER}))
        self._later(seconds, self._wake, process)
        return True

    def _wake(self, process: Process) -> None:
        if process.paused:
            self._since[process] = self.world.now
            self.world.loop.resume(process)

    def paused_since(self, process: Process, since: float) -> bool:
        return self._since.get(process, -1.0) >= since

    def flip(self) -> Any:
        """Some bytes of a copy change by themselves."""
        life = self._node()
        held = list(life.index._copies[0].values())
        if not held:
            return False
        copy = self.rng.choice(held)
        at = copy.offset + int(self.rng.random() * copy.length)
        life.pool.data[at] ^= 0x55
        life.pool.tainted.append((at, at + 1))
        return True
