"""The node's metrics, larder_node_*. Labels are bounded: node, tier, kind, result; never a key."""

from collections.abc import Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.storage_node.core.index import Index


class Metrics:
    """Gauges are read from the index at each scrape; the agent updates the rest."""

    def __init__(self, index: Index, tiers: tuple[str, ...]) -> None:
        registry = self._registry = CollectorRegistry()
        capacity = Gauge("larder_node_capacity_bytes", "Size of the pool", ("tier",), registry=registry)
        held = Gauge("larder_node_held_bytes", "Bytes of the copies held", ("tier",), registry=registry)
        copies = Gauge("larder_node_copies", "Copies held", ("tier",), registry=registry)
        for number, tier in enumerate(tiers):
            capacity.labels(tier).set(index.capacities_bytes[number])
            held.labels(tier).set_function(partial(index.held_bytes.__getitem__, number))
            copies.labels(tier).set_function(partial(index.copies_in, number))
        epoch = Gauge("larder_node_epoch", "Highest epoch obeyed", registry=registry)
        epoch.set_function(lambda: index.epoch)
        self.is_attached = False
        attached = Gauge("larder_node_attached", "1 while attached to a master", registry=registry)
        attached.set_function(lambda: self.is_attached)
        self.attaches = Counter("larder_node_attach_attempts", "Attempts to attach", ("result",), registry=registry)
        self.commands = Counter(
            "larder_node_commands", "Commands of masters, and their outcome", ("kind", "result"), registry=registry
        )
        self.engine_up = Gauge("larder_node_engine_up", "1 while the transfer engine serves", registry=registry)

    def show(self, registry: CollectorRegistry, node_id: str) -> None:
        """Called once the node has its id, which labels all its metrics, as on the master's."""
        registry.register(_Named(self._registry, node_id))


class _Named(Collector):
    def __init__(self, registry: CollectorRegistry, node_id: str) -> None:
        self._registry = registry
        self._node_id = node_id

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [
                sample._replace(labels={"node": self._node_id} | sample.labels) for sample in metric.samples
            ]
            yield metric
