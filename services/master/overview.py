"""The cluster at a glance, for the page and for /api/overview: now, the last hour, recent events.

Reads the core between its steps and never walks objects: an answer costs the same with a million of them as with none.
Bounded: a sample every 15 s for an hour, the last hundred events.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from services.common.version import VERSION
from services.master.core import messages as m
from services.master.driver import Driver, Told

TICK_S: Final = 1.0
SAMPLE_S: Final = 15.0
SAMPLES_MAX: Final = 240
EVENTS_MAX: Final = 100
RATE_TICKS: Final = 10
SAME_EVENT_S: Final = 60.0
TEXT_LENGTH_MAX: Final = 500
USES: Final = ("live", "reserved", "quarantined")
ATTACHED: Final = "attached"  # states of nodes, as `NodeReport` has them
SUSPECT: Final = "suspect"
_COUNTED: Final = {  # counters whose growth is an event: its text, and whether it is grave
    "corrupt_copies": ("{} corrupt copies were found by readers and dropped", True),
    "lost_objects": ("{} objects lost the last copy of some part", True),
    "refused_puts": ("{} objects were not put for lack of room", True),
    "refused_pins": ("{} objects were not put because too much is pinned", True),
    "degraded_puts": ("{} objects were put with fewer copies than asked for", True),
    "expired_writes": ("{} puts were started but not ended in time", False),
}


@dataclass(slots=True)
class Event:
    at: float  # wall clock, seconds
    text: str
    grave: bool
    kind: str = ""  # for events that are counted together
    count: int = 0


class Overview:
    """Call tick() every second, as watch() does."""

    def __init__(
        self,
        driver: Driver,
        answered: Mapping[str, int],
        clock_s: Callable[[], float] = time.monotonic,
        wall_clock_s: Callable[[], float] = time.time,
    ) -> None:
        """`answered`: calls so far, by method."""
        self._driver = driver
        self._answered = answered
        self._clock_s, self._wall_clock_s = clock_s, wall_clock_s
        self._started = self._sampled_at = clock_s()
        self._samples = deque([driver.report().asked], SAMPLES_MAX + 1)
        self._calls = deque([(self._started, dict(answered))], RATE_TICKS + 1)
        self._events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self._states: dict[str, str] = {}  # of nodes, by id
        self._counted = dict.fromkeys(_COUNTED, 0)
        driver.on_note = self._noted

    async def watch(self) -> None:
        """Never returns."""
        while True:
            self.tick()
            await asyncio.sleep(TICK_S)

    def tick(self) -> None:
        now = self._clock_s()
        self._calls.append((now, dict(self._answered)))
        report = self._driver.report()
        self._look_at_nodes(report)
        self._look_at_counters(report)
        steps = int((now - self._sampled_at) // SAMPLE_S)  # more than one where ticks came late
        self._sampled_at += steps * SAMPLE_S
        self._samples.extend([report.asked] * min(steps, SAMPLES_MAX + 1))

    def snapshot(self) -> dict[str, Any]:
        """For JSON. Times are seconds; `at` is the wall clock's, since 1970."""
        report = self._driver.report()
        nodes = [_node(node, self._driver.told.get(node.node_id, Told())) for node in report.nodes]
        return {
            "version": VERSION,
            "epoch": report.epoch,
            "at": self._wall_clock_s(),
            "up_s": self._clock_s() - self._started,
            "rest_s": report.rest_left_ms / 1000,
            "objects": report.objects,
            "object_bytes": report.object_bytes,
            "writes": report.writes_in_flight,
            "waiting_puts": report.waiting_puts,
            "below_target": report.objects_below_target,
            "repairs": report.repairs_pending,
            "requests_per_s": self._rates(),
            "bytes": {use: sum(node[use] for node in nodes) for use in ("capacity", *USES, "free", "pinned")},
            "asked": self._history(report),
            "nodes": nodes,
            "events": [{"at": event.at, "text": event.text, "grave": event.grave} for event in reversed(self._events)],
        }

    def _rates(self) -> dict[str, float]:
        """Calls a second by method, over the last ten seconds or so."""
        since, before = self._calls[0]
        elapsed = max(self._clock_s() - since, TICK_S)
        return {
            op: (count - before.get(op, 0)) / elapsed
            for op, count in self._answered.items()
            if count > before.get(op, 0)
        }

    def _history(self, report: m.StatusReport) -> dict[str, Any]:
        """Keys asked for and keys found: in the last hour, and in each of its steps, oldest first."""
        samples = [*self._samples, report.asked]
        steps = [
            {op: (new[op].requested_keys - old[op].requested_keys, new[op].hit_keys - old[op].hit_keys) for op in new}
            for old, new in pairwise(samples)
        ]
        return {
            "step_s": SAMPLE_S,
            "since_step_s": self._clock_s() - self._sampled_at,
            "hour": {op: [sum(step[op][n] for step in steps) for n in (0, 1)] for op in samples[0]},
            "steps": {op: [step[op] for step in steps] for op in samples[0]},
        }

    # ---- events ----------------------------------------------------------------------------------

    def _noted(self, note: m.Note) -> None:
        self._add(note.text, grave=note.grave)

    def _look_at_nodes(self, report: m.StatusReport) -> None:
        states = {node.node_id: node.state for node in report.nodes}
        for node_id, state in states.items():
            before = self._states.get(node_id)
            if state == ATTACHED and before != ATTACHED:
                self._add(f"node {node_id} is attached")
            elif state == SUSPECT and before == ATTACHED and not self._was_told(f"node {node_id} "):
                self._add(f"node {node_id} broke its connection: its copies are not offered", grave=True)
        self._states = states

    def _was_told(self, beginning: str) -> bool:
        """Whether the core itself has just said something grave that begins so."""
        since = self._wall_clock_s() - 2 * TICK_S
        return any(event.grave and event.at >= since and event.text.startswith(beginning) for event in self._events)

    def _look_at_counters(self, report: m.StatusReport) -> None:
        now = self._wall_clock_s()
        for name, (text, grave) in _COUNTED.items():
            count = getattr(report.counters, name)
            grown, self._counted[name] = count - self._counted[name], count
            if not grown:
                continue
            last = next((event for event in reversed(self._events) if event.kind == name), None)
            if last is not None and now - last.at < SAME_EVENT_S:
                self._events.remove(last)
                grown += last.count
            self._events.append(Event(now, text.format(grown), grave, name, grown))

    def _add(self, text: str, *, grave: bool = False) -> None:
        self._events.append(Event(self._wall_clock_s(), text[:TEXT_LENGTH_MAX], grave))


def _node(node: m.NodeReport, told: Told) -> dict[str, Any]:
    segments = node.segments
    return {
        "id": node.node_id,
        "zone": node.zone,
        "host": told.host_name,
        "address": told.address,
        "version": told.version,
        "state": node.state,
        "draining": node.draining,
        "copies": sum(segment.copies for segment in segments),
        "capacity": sum(segment.capacity_bytes for segment in segments),
        **{use: sum(getattr(segment, f"{use}_bytes") for segment in segments) for use in USES},
        "free": sum(segment.free_bytes for segment in segments),
        "pinned": sum(segment.pinned_bytes for segment in segments),
    }
