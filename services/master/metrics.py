"""The core's counters and gauges as Prometheus metrics, read when they are scraped."""

from collections.abc import Iterator
from dataclasses import fields

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.master.core.master import Master

_HELP = {
    "evicted_objects": "Objects evicted to make room",
    "evicted_bytes": "Bytes of objects evicted to make room",
    "displaced_objects": "Objects evicted to make room for copies made again",
    "expired_objects": "Objects whose time to live was over",
    "refused_pins": "Objects not put because too much of the pools is pinned hard",
    "expired_writes": "Puts that were started and never ended",
    "lost_objects": "Objects of which some slice lost its last copy",
    "lost_copies": "Copies lost with their node",
    "corrupt_copies": "Copies a reader's checksum condemned",
    "unreachable_reports": "Reads that failed to reach a copy, as reported by clients",
    "probes": "Nodes asked for a word because a client could not reach them",
    "failed_probes": "Probes that were not answered in time: the node became suspect",
    "adopted_copies": "Copies taken over from nodes' inventories",
    "dropped_claims": "Claims in inventories that contradicted what was known",
    "degraded_puts": "Puts that ended with fewer copies than asked for",
    "repaired_copies": "Copies made again from a surviving one",
    "failed_repairs": "Copies that could not be made again in the first attempt",
    "trimmed_copies": "Copies above the wanted number, given back",
    "drained_copies": "Copies taken off nodes that are to go, once others were there",
    "requested_keys": "Keys looked up",
    "hit_keys": "Keys looked up and found",
    "hit_bytes": "Bytes of objects looked up and found",
    "stale_messages": "Messages of an old epoch or incarnation, ignored",
}


class CoreCollector(Collector):
    def __init__(self, core: Master) -> None:
        self._core = core

    def collect(self) -> Iterator[Metric]:
        state = self._core.state
        for field in fields(state.counters):
            value = getattr(state.counters, field.name)
            yield CounterMetricFamily(f"larder_master_{field.name}", _HELP[field.name], value=value)
        yield GaugeMetricFamily("larder_master_objects", "Readable objects", value=len(state.objects))
        yield GaugeMetricFamily(
            "larder_master_object_bytes", "Sizes of objects, copies not counted", state.object_bytes
        )
        yield GaugeMetricFamily("larder_master_writes_in_flight", "Puts between start and end", value=len(state.writes))
        yield GaugeMetricFamily("larder_master_waiting_puts", "Puts waiting for room", len(self._core.puts.waiting))
        yield GaugeMetricFamily("larder_master_repairs_pending", "Objects that lack copies", self._core.repair.pending)
        yield GaugeMetricFamily("larder_master_epoch", "Number of this master's reign", value=state.epoch)
        yield GaugeMetricFamily("larder_master_draining_nodes", "Storage nodes that are to go", state.draining)
        rests_s = state.rest.left_ms(state.now) / 1000
        yield GaugeMetricFamily(
            "larder_master_rest_seconds", "Until what is free can be used, after a start; 0: nothing rests", rests_s
        )
        nodes = GaugeMetricFamily("larder_master_nodes", "Storage nodes by state", labels=["state"])
        for phase in ("attaching", "attached", "suspect"):
            nodes.add_metric([phase], sum(node.phase.value == phase for node in state.nodes.values()))
        yield nodes
        space = GaugeMetricFamily("larder_master_segment_bytes", "Bytes of a node's pools", labels=["node", "use"])
        for node in state.nodes.values():
            for use in ("live", "reserved", "quarantined"):
                total = sum(getattr(segment, f"{use}_bytes") for segment in node.segments)
                space.add_metric([node.node_id, use], total)
            space.add_metric([node.node_id, "pinned"], sum(s.pinned_bytes for s in node.segments))  # a part of live
            space.add_metric([node.node_id, "free"], sum(s.allocator.free_bytes for s in node.segments))
        yield space
