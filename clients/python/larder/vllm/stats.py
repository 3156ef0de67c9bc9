"""What vLLM carries from the connector to its log line and its /metrics; counts and metrics say what that is."""

from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from larder.vllm.counts import add, sums
from larder.vllm.metrics import Metrics


class LarderStats(KVConnectorStats):  # type: ignore[misc]  # vLLM has no types for mypy
    """Counts that are not zero, by the role of the connector that they are of."""

    def reset(self) -> None:
        """Back to nothing."""
        self.data: dict[str, dict[str, float]] = {}

    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> "LarderStats":
        """Add another's counts."""
        for role, counts in other.data.items():
            add(self.data.setdefault(role, {}), counts)
        return self

    def reduce(self) -> dict[str, int | float]:
        """For one log line, of all roles."""
        counts: dict[str, float] = {}
        for each in self.data.values():
            add(counts, each)
        return sums(counts)


class LarderPromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """The same in Prometheus."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        kinds = {Counter: self._counter_cls, Gauge: self._gauge_cls, Histogram: self._histogram_cls}
        self._metrics = Metrics(kinds, role_of(self._kv_transfer_config), labelnames, per_engine_labelvalues)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add a step's counts."""
        for role, counts in transfer_stats_data.items():
            self._metrics.observe(counts, role, engine_idx)


def role_of(config: Any) -> str:
    """Of a connector, by its configuration: producer, consumer or both."""
    return str(config.kv_role).removeprefix("kv_")
