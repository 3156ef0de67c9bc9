"""The core's counters and gauges as Prometheus metrics, read when they are scraped."""

from collections.abc import Callable, Iterator
from dataclasses import fields

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.master.core import messages as m

_HELP = {
    "put_objects": "Objects put",
    "put_bytes": "Bytes of objects put, copies not counted",
    "evicted_objects": "Objects evicted to make room",
    "evicted_bytes": "Bytes of objects evicted to make room",
    "displaced_objects": "Objects evicted to make room for remade copies",
    "expired_objects": "Objects whose time to live had ended",
    "refused_pins": "Objects not put because too much of the pools is pinned hard",
    "refused_puts": "Objects not put because no room was found in time",
    "expired_writes": "Puts that were started but never ended",
    "lost_objects": "Objects that lost the last copy of a slice",
    "lost_copies": "Copies lost with their node",
    "corrupt_copies": "Copies that failed a reader's checksum",
    "unreachable_reports": "Reads that failed to reach a copy, as reported by clients",
    "probes": "Nodes asked for a heartbeat because a client could not reach them",
    "failed_probes": "Probes not answered in time, which made the node suspect",
    "adopted_copies": "Copies adopted from nodes' inventories",
    "dropped_claims": "Claims in inventories that contradicted what was known",
    "degraded_puts": "Puts that ended with fewer copies than asked for",
    "repaired_copies": "Copies remade from a surviving one",
    "failed_repairs": "Copies that could not be remade at the first attempt",
    "trimmed_copies": "Copies above the wanted number that were dropped",
    "drained_copies": "Copies dropped from draining nodes once others existed",
    "stale_messages": "Messages of an old epoch or incarnation, ignored",
}
_ASKED_HELP = {
    "requested_keys": "Keys that lookups and matches asked for",
    "hit_keys": "Keys of these that were found; for a match, those before the first miss",
    "hit_bytes": "Bytes of the objects that were found",
}
_TIER = "dram"  # there is no other


class CoreCollector(Collector):
    def __init__(self, report: Callable[[], m.StatusReport]) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        report = self._report()
        for field in fields(report.counters):
            value = getattr(report.counters, field.name)
            yield CounterMetricFamily(f"larder_master_{field.name}", _HELP[field.name], value=value)
        for name, text in _ASKED_HELP.items():
            family = CounterMetricFamily(f"larder_master_{name}", text, labels=["op"])
            for op, asked in report.asked.items():
                family.add_metric([op], getattr(asked, name))
            yield family
        for name, text, value in (
            ("objects", "Readable objects", report.objects),
            ("object_bytes", "Sizes of objects, copies not counted", report.object_bytes),
            ("writes_in_flight", "Puts between start and end", report.writes_in_flight),
            ("waiting_puts", "Puts waiting for room", report.waiting_puts),
            ("repairs_pending", "Objects that lack copies", report.repairs_pending),
            ("objects_below_target", "Readable objects with fewer copies than wanted", report.objects_below_target),
            ("copies_missing", "Copies that these lack", report.copies_missing),
            ("epoch", "Number of this master's reign", report.epoch),
            ("draining_nodes", "Draining storage nodes", sum(node.draining for node in report.nodes)),
            (
                "rest_seconds",
                "Time until free space can be used after a start; 0: it can be used",
                report.rest_left_ms / 1000,
            ),
        ):
            yield GaugeMetricFamily(f"larder_master_{name}", text, value=value)
        nodes = GaugeMetricFamily("larder_master_nodes", "Storage nodes by state", labels=["state"])
        for state in ("attaching", "attached", "suspect"):
            nodes.add_metric([state], sum(node.state == state for node in report.nodes))
        yield nodes
        yield from _space(report)


def _space(report: m.StatusReport) -> Iterator[Metric]:
    labels = ["node", "tier"]
    capacity = GaugeMetricFamily("larder_master_capacity_bytes", "Size of a node's pools", labels=labels)
    pinned = GaugeMetricFamily("larder_master_pinned_bytes", "Of the live bytes, those pinned hard", labels=labels)
    space = GaugeMetricFamily(
        "larder_master_segment_bytes", "What a node's pools are used for, in bytes", labels=[*labels, "use"]
    )
    for node in report.nodes:
        where = [node.node_id, _TIER]
        capacity.add_metric(where, sum(segment.capacity_bytes for segment in node.segments))
        pinned.add_metric(where, sum(segment.pinned_bytes for segment in node.segments))
        for use in ("live", "reserved", "quarantined", "free"):
            total = sum(getattr(segment, f"{use}_bytes") for segment in node.segments)
            space.add_metric([*where, use], total)
    yield from (capacity, pinned, space)
