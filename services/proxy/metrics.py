"""The proxy's own metrics. Labels are bounded: this proxy's routes, HTTP codes, the engines, and the words below.

A request's outcome: ok · decode_alone (answered, but every prefill failed: the decode engine computed the prompt) ·
engine_error (the engine's 4xx or 5xx, passed on) · refused (a 4xx of the proxy's own) · unserved (no decode engine
answered) · timed_out · broken (failed after its first byte) · cancelled (the client left) · internal (a defect).
"""

import time
from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.version import show_build
from services.proxy.core.engine import Address, Breaker, Health, Role
from services.proxy.core.fleet import Fleet

_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ADDED_BUCKETS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
_GAP_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


class Metrics:
    def __init__(self, registry: CollectorRegistry, fleet: Fleet) -> None:
        ProcessCollector(registry=registry)
        show_build(registry, "proxy")
        registry.register(_FleetCollector(fleet))
        self.requests = Counter(
            "larder_proxy_requests", "Requests ended", ("path", "code", "outcome"), registry=registry
        )
        self.leg_seconds = {
            role: Histogram(
                f"larder_proxy_{role}_seconds",
                f"Time of one {role} leg, from sending it to the end of its answer",
                ("engine", "outcome"),
                buckets=_BUCKETS,
                registry=registry,
            )
            for role in Role
        }
        self.ttft_seconds = Histogram(
            "larder_proxy_time_to_first_token_seconds",
            "From the arrival of a streamed request to its first byte",
            buckets=_BUCKETS,
            registry=registry,
        )
        self.added_seconds = Histogram(
            "larder_proxy_added_seconds",
            "The proxy's own part of that: not waiting for an engine or for the rest of the request",
            buckets=_ADDED_BUCKETS,
            registry=registry,
        )
        self.gap_seconds = Histogram(
            "larder_proxy_inter_token_seconds",
            "Between two pieces of a streamed answer",
            buckets=_GAP_BUCKETS,
            registry=registry,
        )
        self.retries = Counter(
            "larder_proxy_retries",
            "Legs given up before their first byte",
            ("phase", "engine", "reason"),
            registry=registry,
        )
        self.changes = Counter(
            "larder_proxy_engine_changes",
            "Engines lost and back, breakers opened and closed",
            ("role", "engine", "change"),
            registry=registry,
        )

        self._legs: dict[tuple[Role, Address, str], Histogram] = {}
        self._ended: dict[tuple[str, int, str], Counter] = {}

    def ended(self, path: str, code: int, outcome: str) -> None:
        """Counts a request."""
        key = (path, code, outcome)
        found = self._ended.get(key)
        if found is None:
            found = self._ended[key] = self.requests.labels(path, str(code), outcome)
        found.inc()

    def leg(self, role: Role, address: Address, outcome: str) -> Histogram:
        """The histogram that the seconds of one leg go to."""
        key = (role, address, outcome)
        found = self._legs.get(key)  # labels() takes as long as everything else here
        if found is None:
            found = self._legs[key] = self.leg_seconds[role].labels(address, outcome)
        return found

    def keep_only(self, known: set[tuple[Role, Address]]) -> None:
        """Drops the series of engines that are no longer known, also where a leg ended after the removal."""
        for metric in (*self.leg_seconds.values(), self.retries, self.changes):
            role = next((role for role in Role if metric is self.leg_seconds[role]), None)
            for values in list(metric._metrics):
                labels = dict(zip(metric._labelnames, values, strict=True))
                if (role or labels.get("role") or labels.get("phase"), labels["engine"]) not in known:
                    metric.remove(*values)
        self._legs.clear()


class _FleetCollector(Collector):
    """The state of the fleet at the moment of the scrape."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterable[Metric]:
        labels, now = ("role", "engine"), time.monotonic()
        count = GaugeMetricFamily("larder_proxy_engines", "Engines in the fleet", labels=("role",))
        up = GaugeMetricFamily("larder_proxy_engine_up", "1: it answers", labels=labels)
        draining = GaugeMetricFamily("larder_proxy_engine_draining", "1: takes no new legs", labels=labels)
        breaker = GaugeMetricFamily(
            "larder_proxy_engine_breaker_state", "0: closed, 1: half open, 2: open", labels=labels
        )
        legs = GaugeMetricFamily("larder_proxy_engine_legs", "Legs under way", labels=labels)
        tokens = GaugeMetricFamily(
            "larder_proxy_engine_prompt_tokens", "Estimated prompt tokens of the legs under way", labels=labels
        )
        states = {Breaker.CLOSED: 0, Breaker.HALF_OPEN: 1, Breaker.OPEN: 2}
        for role in Role:
            engines = self._fleet.engines(role)
            count.add_metric((role.value,), len(engines))
            for engine in engines:
                who = (role.value, engine.address)
                up.add_metric(who, engine.health is Health.UP)
                draining.add_metric(who, engine.draining)
                breaker.add_metric(who, states[engine.breaker(now)])
                legs.add_metric(who, engine.requests)
                tokens.add_metric(who, engine.prompt_tokens)
        return (count, up, draining, breaker, legs, tokens)
