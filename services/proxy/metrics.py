"""The proxy's own metrics. Labels are bounded: routes of this proxy, HTTP codes, and the words below; never an address.

A request's outcome: ok · decode_alone (answered, but every prefill failed: the decode engine computed the prompt) ·
engine_error (the engine's 4xx or 5xx, passed on) · refused (a 4xx of the proxy's own) · unserved (no decode engine
answered) · timed_out · broken (failed after its first byte) · cancelled (the client left) · internal (a defect here).
"""

from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from services.proxy.core.routing import Role, RoutingTable

_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    def __init__(self, registry: CollectorRegistry, table: RoutingTable) -> None:
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "larder_proxy_requests", "Requests ended", ("path", "code", "outcome"), registry=registry
        )
        self.leg_seconds = {
            role: Histogram(
                f"larder_proxy_{role}_seconds",
                f"Time of one {role} leg, from sending it to the end of its answer",
                ("outcome",),
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
        self.retries = Counter(
            "larder_proxy_retries", "Legs given up before their first byte", ("phase", "reason"), registry=registry
        )
        self.in_flight = Gauge("larder_proxy_in_flight", "Requests being answered", registry=registry)
        instances = Gauge("larder_proxy_instances", "Engines in the routing table", ("role",), registry=registry)
        for role in Role:
            instances.labels(role.value).set_function(partial(_count, table, role))


def _count(table: RoutingTable, role: Role) -> float:
    return len(table.engines(role))
