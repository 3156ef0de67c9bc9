"""What is done to the cluster, and in which order: all of it from the seed. Says afterwards what it did and when.

A cycle is one or two node faults and up to two client faults at once, their heal, the wait until the cluster is whole,
and a look at whether all is normal. Faults are drawn from a deck, so that each kind comes before any comes again.
"""

import random
import time

from tests.chaos.checker import RECOVERY_S
from tests.chaos.history import Outage
from tests.chaos.world import CLIENTS, NODES, World

HOLD_S = (2.0, 6.0)
LONG_S = {"client sleep": 18.0, "node lost": 34.0}  # outlives a write; outlives the master's patience
WHOLE_S = 30.0  # by then every copy is made again
WATCH_S = 2.0  # how long all is looked at with nothing broken
START_S = 20.0
FATAL = ("node kill", "node full")
NEED_HOSTS = ("node cut", "client cut", "node full")


class Nemesis:
    def __init__(self, world: World, *, seed: int) -> None:
        self._world = world
        self._random = random.Random(seed)
        self._decks: dict[str, list[str]] = {"node": [], "client": []}
        self.outages: list[Outage] = []
        self.heals: list[tuple[float, float, list[str]]] = []  # healed at, whole at, kinds
        self.unexpected: list[str] = []

    def run(self, until: float) -> None:
        """Cycles until a moment of time.monotonic(), the last of them to its end."""
        time.sleep(WATCH_S)
        while time.monotonic() + HOLD_S[0] + RECOVERY_S + WATCH_S < until:
            self._cycle(until - time.monotonic())

    def _cycle(self, left_s: float) -> None:
        nodes = self._random.sample(NODES, self._random.choice([1, 1, 2]))
        clients = self._random.sample(list(CLIENTS), self._random.choice([0, 1, 1, 2]))
        faults = [(self._draw("node", left_s), name) for name in nodes]
        faults += [(self._draw("client", left_s), name) for name in clients]
        hold_s = max([self._random.uniform(*HOLD_S), *(LONG_S.get(kind, 0.0) for kind, _ in faults)])
        begun = [self._begin(kind, target) for kind, target in faults]
        time.sleep(hold_s)
        for outage in self._random.sample(begun, len(begun)):
            self._heal(outage)
        healed_at = time.monotonic()
        self._await_whole(healed_at)
        self.heals.append((healed_at, time.monotonic(), [kind for kind, _ in faults]))
        time.sleep(max(0.0, healed_at + RECOVERY_S - time.monotonic()) + WATCH_S)
        self._world.check_alive()

    def _draw(self, kind: str, left_s: float) -> str:
        deck = self._decks[kind]
        if not deck:
            kinds = ["node kill", "node stop", "node cut", "node full", "node lost"]
            kinds += ["client kill", "client stop", "client cut", "client sleep"]
            usable = [each for each in kinds if self._world.hosts.apart or each not in NEED_HOSTS]
            deck += [each for each in usable if each.startswith(kind)]
            self._random.shuffle(deck)
        fits = [each for each in deck if LONG_S.get(each, 0.0) < left_s - RECOVERY_S - WATCH_S]
        chosen = fits[0] if fits else f"{kind} stop"
        if chosen in deck:
            deck.remove(chosen)
        return chosen

    def _begin(self, kind: str, target: str) -> Outage:
        process, hosts = self._world.cluster.processes[target], self._world.hosts
        outage = Outage(kind, target, time.monotonic(), fatal=kind in FATAL)
        self.outages.append(outage)
        if kind.endswith("kill"):
            process.kill()
        elif kind.endswith("cut"):
            hosts.cut(target)
        elif kind == "node full":
            hosts.fill(target)
            time.sleep(1.0)  # a pool that has its pages does not notice
            process.kill()
            if not self._world.refuses_to_start(target):
                self.unexpected.append(f"{target} did not refuse a full disk:\n{process.tail()}")
        else:
            process.pause()
        return outage

    def _heal(self, outage: Outage) -> None:
        name, world = outage.target, self._world
        if outage.kind.endswith("cut"):
            world.hosts.mend(name)
        elif outage.kind == "client kill":
            world.start_client(name)
            world.cluster.wait_ready()
        elif outage.fatal:
            if outage.kind == "node full":
                world.hosts.drain(name)
            world.start_node(name)
            world.cluster.wait_ready()
        else:
            world.cluster.processes[name].resume()
        outage.end = time.monotonic()

    def _await_whole(self, healed_at: float) -> None:
        while not self._world.is_whole():
            if time.monotonic() > healed_at + WHOLE_S:
                self.unexpected.append(f"the cluster was not whole {WHOLE_S:.0f} s after a heal")
                return
            time.sleep(0.2)
