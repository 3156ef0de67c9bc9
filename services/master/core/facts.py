"""Stat and Status: what is known about objects and the cluster, for people.

Asking changes neither the order of eviction nor a counter of hits. Keeps invariant 7 for callers that want a lease.
"""

from dataclasses import replace
from itertools import chain

from services.master.core import messages as m
from services.master.core.arguments import check_keys
from services.master.core.calls import Calls
from services.master.core.cluster import Node, Segment
from services.master.core.drain import Drains
from services.master.core.leases import Leases
from services.master.core.messages import Result
from services.master.core.places import make_places
from services.master.core.puts import Puts
from services.master.core.repair import Repair
from services.master.core.tables import State


class Facts:
    def __init__(self, state: State, calls: Calls, leases: Leases, repair: Repair, puts: Puts, drains: Drains) -> None:
        self.state = state
        self.calls = calls
        self.leases = leases
        self.repair = repair
        self.puts = puts
        self.drains = drains

    def stat(self, command: m.Stat) -> None:
        check_keys(self.state.config, command.keys)
        state, now = self.state, self.state.now
        found = [state.objects.get(key) for key in command.keys]
        objects = [None if obj is None or 0 < obj.expires_at <= now else obj for obj in found]
        there = [obj for obj in objects if obj is not None]
        reading_ms = [max(0, obj.lease_until - now) if obj else 0 for obj in objects]
        lease = self.leases.give(there) if command.lease and there else 0
        parts = list(chain.from_iterable(obj.slices for obj in there))
        held = [[copy for copy in part.copies if copy.segment in state.segments] for part in parts]
        places = make_places([len(obj.slices) if obj else 0 for obj in objects], parts, held, state.segments)
        self.calls.reply(
            command.call,
            m.Known(
                results=[Result.OK if obj else Result.MISS for obj in objects],
                sizes=[obj.size if obj else 0 for obj in objects],
                places=places,
                silent=[at for at, ref in enumerate(places.segments) if not state.segments[ref.number].live],
                wanted=[obj.wanted if obj else 0 for obj in objects],
                pins=[obj.pin if obj else 0 for obj in objects],
                ttls_ms=[max(0, obj.expires_at - now) if obj else 0 for obj in objects],
                leases_ms=reading_ms,
                write_ids=[obj.write_id if obj else 0 for obj in objects],
                depths=[obj.depth if obj else 0 for obj in objects],
                lease_ms=state.config.lease_ms - 1 if lease else 0,
                lease=lease,
            ),
        )

    def status(self, command: m.Status) -> None:
        report = self.report(self.state.now)
        nodes = [] if command.brief else [replace(node, drain=self._drain(node.node_id)) for node in report.nodes]
        self.calls.reply(command.call, replace(report, nodes=nodes))

    def report(self, now: int) -> m.StatusReport:
        """`now` may be later than the last step."""
        state = self.state
        rest_left_ms = state.rest.left_ms(now)
        return m.StatusReport(
            epoch=state.epoch,
            objects=len(state.objects),
            object_bytes=state.object_bytes,
            writes_in_flight=len(state.writes),
            slice_bytes=state.config.slice_bytes,
            nodes=list(map(_node_report, state.nodes.values())),
            counters=replace(state.counters),
            asked={op: replace(asked) for op, asked in state.asked.items()},
            up_ms=now - state.began_at,
            objects_below_target=len(state.missing),
            copies_missing=sum(state.missing.values()),
            repairs_pending=self.repair.pending,
            waiting_puts=len(self.puts.waiting),
            rested_ms=now - state.rest.since if rest_left_ms else 0,
            rest_left_ms=rest_left_ms,
            attached=state.attached(),
        )

    def _drain(self, node_id: str) -> m.DrainReport | None:
        return self.drains.report(self.state.nodes[node_id])


def _node_report(node: Node) -> m.NodeReport:
    segments = list(map(_segment_report, node.segments))
    return m.NodeReport(
        node.node_id, node.host_id, node.phase.said, node.incarnation, segments, node.zone, node.draining
    )


def _segment_report(segment: Segment) -> m.SegmentReport:
    return m.SegmentReport(
        segment.ref,
        segment.capacity,
        segment.live_bytes,
        segment.reserved_bytes,
        segment.quarantined_bytes,
        segment.allocator.free_bytes,
        segment.allocator.largest_free_bytes,
        segment.copies,
        segment.pinned_bytes,
    )
