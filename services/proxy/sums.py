"""The metrics of several workers as those of one proxy: counters and histograms are added up, gauges as each needs.

A worker's counters outlive it: whatever was shown of them is kept beside the worker's socket and added to what its
successor counts, so that a restart does not look like a reset of the whole proxy.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

logger = logging.getLogger(__name__)

_LASTING: Final = frozenset({"counter", "histogram"})
_BY_MAX: Final = frozenset(
    {
        "larder_build_info",
        "larder_proxy_engines",
        "larder_proxy_engine_up",
        "larder_proxy_engine_draining",
        "larder_proxy_engine_breaker_state",
        "process_max_fds",
        "process_start_time_seconds",
    }
)
"""Gauges whose greatest value among the workers is the proxy's; the others are added up."""

Family = list[Any]
"""[name, type, help, [[sample's name, {label: value}, value], …]], as JSON carries it."""


class Samples:
    """One worker's metrics, and those of its predecessors."""

    def __init__(self, registry: CollectorRegistry, path: Path) -> None:
        self._registry = registry
        self._path = path
        self._former = kept(path)

    def take(self) -> list[Family]:
        """The present values, kept before they are shown."""
        taken = [_family_of(metric) for metric in self._registry.collect()]
        new = self._path.with_suffix(".new")
        lasting = [family for family in merged([taken, self._former]) if family[1] in _LASTING]
        try:
            new.write_text(json.dumps(lasting))
            new.replace(self._path)
        except OSError as error:
            logger.warning("a restart of this worker would take %s off the counters: %s", self._path.name, error)
        return merged([taken, self._former])


def kept(path: Path) -> list[Family]:
    """A worker's counters and histograms, as last shown."""
    try:
        families: list[Family] = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    return families


def merged(parts: Iterable[list[Family]]) -> list[Family]:
    families: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, ...], list[Any]]] = {}
    for part in parts:
        for name, kind, text, samples in part:
            families.setdefault(name, [name, kind, text, []])
            found = values.setdefault(name, {})
            for sample, labels, value in samples:
                key = (sample, *(f"{label}={labels[label]}" for label in sorted(labels)))
                if (there := found.get(key)) is None:
                    found[key] = [sample, labels, value]
                else:
                    there[2] = max(there[2], value) if name in _BY_MAX else there[2] + value
    return [[name, kind, text, list(values[name].values())] for name, kind, text, _ in families.values()]


def exposition(families: Iterable[Family]) -> bytes:
    """In Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Given(families))
    return generate_latest(registry)


class _Given(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for name, kind, text, samples in self._families:
            metric = Metric(name, text, kind)
            metric.samples = [Sample(sample, labels, value) for sample, labels, value in samples]
            yield metric

    def describe(self) -> list[Metric]:
        return []


def _family_of(metric: Metric) -> Family:
    samples = [
        [sample.name, sample.labels, sample.value]
        for sample in metric.samples
        if not sample.name.endswith("_created")  # when a worker started counting says nothing of the proxy
    ]
    return [metric.name, metric.type, metric.documentation, samples]
