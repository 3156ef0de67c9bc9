"""The core's counters and gauges as Prometheus metrics, read when they are scraped."""

from collections.abc import Iterator
from dataclasses import fields

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.master.core.master import Master

_HELP = {
    "put_objects": "Objects put",
    "put_bytes": "Bytes of objects put, copies not counted",
    "evicted_objects": "Objects evicted to make room",
    "evicted_bytes": "Bytes of objects evicted to make room",
    "displaced_objects": "Objects evicted to make room for copies made again",
    "expired_objects": "Objects whose time to live was over",
    "refused_pins": "Objects not put because too much of the pools is pinned hard",
    "refused_puts": "Objects not put because no room was found in time",
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
    "stale_messages": "Messages of an old epoch or incarnation, ignored",
}
_ASKED_HELP = {
    "requested_keys": "Keys that lookups and matches asked for",
    "hit_keys": "Of these, keys that were found: by a match, those before the first that was not",
    "hit_bytes": "Bytes of the objects that were found",
}
_TIER = "dram"  # there is no other


class CoreCollector(Collector):
    def __init__(self, core: Master) -> None:
        self._core = core

    def collect(self) -> Iterator[Metric]:
        state = self._core.state
        for field in fields(state.counters):
            value = getattr(state.counters, field.name)
            yield CounterMetricFamily(f"larder_master_{field.name}", _HELP[field.name], value=value)
        for name, text in _ASKED_HELP.items():
            family = CounterMetricFamily(f"larder_master_{name}", text, labels=["op"])
            for op, asked in state.asked.items():
                family.add_metric([op], getattr(asked, name))
            yield family
        yield GaugeMetricFamily("larder_master_objects", "Readable objects", value=len(state.objects))
        yield GaugeMetricFamily(
            "larder_master_object_bytes", "Sizes of objects, copies not counted", state.object_bytes
        )
        yield GaugeMetricFamily("larder_master_writes_in_flight", "Puts between start and end", value=len(state.writes))
        yield GaugeMetricFamily("larder_master_waiting_puts", "Puts waiting for room", len(self._core.puts.waiting))
        yield GaugeMetricFamily("larder_master_repairs_pending", "Objects that lack copies", self._core.repair.pending)
        missing = state.missing
        yield GaugeMetricFamily(
            "larder_master_objects_below_target", "Readable objects with fewer copies than wanted", value=len(missing)
        )
        yield GaugeMetricFamily("larder_master_copies_missing", "Copies that these lack", value=sum(missing.values()))
        yield GaugeMetricFamily("larder_master_epoch", "Number of this master's reign", value=state.epoch)
        yield GaugeMetricFamily("larder_master_draining_nodes", "Storage nodes that are to go", state.draining)
        rests_s = state.rest.left_ms(state.now) / 1000
        yield GaugeMetricFamily(
            "larder_master_rest_seconds", "Until what is free can be used, after a start; 0: nothing rests", rests_s
        )
        nodes = GaugeMetricFamily("larder_master_nodes", "Storage nodes by state", labels=["state"])
        for phase in ("attaching", "attached", "suspect"):
            nodes.add_metric([phase], sum(node.phase.said == phase for node in state.nodes.values()))
        yield nodes
        yield from self._space()

    def _space(self) -> Iterator[Metric]:
        labels = ["node", "tier"]
        capacity = GaugeMetricFamily("larder_master_capacity_bytes", "Size of a node's pools", labels=labels)
        pinned = GaugeMetricFamily("larder_master_pinned_bytes", "Of the live bytes, those pinned hard", labels=labels)
        space = GaugeMetricFamily(
            "larder_master_segment_bytes", "What a node's pools are used for, in bytes", labels=[*labels, "use"]
        )
        for node in self._core.state.nodes.values():
            where = [node.node_id, _TIER]
            capacity.add_metric(where, sum(segment.capacity for segment in node.segments))
            pinned.add_metric(where, sum(segment.pinned_bytes for segment in node.segments))
            for use in ("live", "reserved", "quarantined"):
                total = sum(getattr(segment, f"{use}_bytes") for segment in node.segments)
                space.add_metric([*where, use], total)
            space.add_metric([*where, "free"], sum(segment.allocator.free_bytes for segment in node.segments))
        yield from (capacity, pinned, space)
