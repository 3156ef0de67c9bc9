"""What the connector counts, for vLLM's log line and for Prometheus.

Counts only grow and only add, so workers, steps and engines aggregate by addition. Requested and hit are both counted,
in tokens; bytes and seconds of loads and saves lie beside them. Names: larder_client_<name>_total.
"""

from typing import Any, Final

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

COUNTERS: Final[dict[str, str]] = {
    "requested_tokens": "Tokens of scheduled requests that the engine's own cache did not have.",
    "hit_tokens": "Of these, tokens the store had, that were loaded or tried to be.",
    "lookup_failures": "Lookups without an answer in time.",
    "loads": "Requests that were loaded for.",
    "got_objects": "Objects loaded.",
    "got_bytes": "Bytes loaded.",
    "failed_gets": "Objects that were promised and did not arrive in time or as they were put.",
    "load_seconds": "Time that loads took, summed.",
    "saves": "Batches saved.",
    "put_objects": "Objects saved.",
    "put_bytes": "Bytes saved.",
    "existed_objects": "Objects that needed no saving: the store had them.",
    "failed_puts": "Objects that could not be saved.",
    "dropped_puts": "Objects not offered, because the store did not answer.",
    "save_seconds": "Time that saves took, summed.",
}


class LarderStats(KVConnectorStats):  # type: ignore[misc]  # vLLM has no types for mypy
    """A dict of COUNTERS, those that are not zero."""

    def reset(self) -> None:
        """Back to nothing."""
        self.data: dict[str, float] = {}

    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not any(self.data.values())

    def aggregate(self, other: KVConnectorStats) -> "LarderStats":
        """Add another's counts."""
        for name, count in other.data.items():
            self.data[name] = self.data.get(name, 0) + count
        return self

    def reduce(self) -> dict[str, int | float]:
        """For one log line."""
        return {name: round(self.data[name], 3) for name in COUNTERS if self.data.get(name)}


class LarderPromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """The same counts as Prometheus counters, one of each an engine."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        made = {
            name: self._counter_cls(name=f"larder_client_{name}", documentation=text, labelnames=labelnames)
            for name, text in COUNTERS.items()
        }
        self._counters = {
            engine: {name: counter.labels(*values) for name, counter in made.items()}
            for engine, values in per_engine_labelvalues.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add a step's counts."""
        for name, count in transfer_stats_data.items():
            self._counters[engine_idx][name].inc(count)
