"""What the connector counts, in Prometheus: larder_client_*, by the engine's role, on the engine's own /metrics.

Requested and hit are both counted, in tokens; bytes and durations of loads and saves lie beside them, by transport.
How a count is named on its way here is in counts.py. No vLLM: what kinds of metrics there are is handed in.
"""

import platform
from collections.abc import Mapping, Sequence
from typing import Any, Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from larder.version import own_version
from larder.vllm.counts import UP, name_of, seconds_of, without_seconds

COUNTERS: Final[dict[str, str]] = {
    "requested_tokens": "Tokens of scheduled requests that the engine's own cache did not have.",
    "hit_tokens": "Of these, tokens the store had, that were loaded or tried to be.",
    "lookup_failures": "Lookups without an answer in time.",
    "loads": "Requests that were loaded for.",
    "got_objects": "Objects loaded.",
    "failed_gets": "Objects that were promised and did not arrive in time or as they were put.",
    "saves": "Batches saved.",
    "put_objects": "Objects saved.",
    "existed_objects": "Objects that needed no saving: the store had them.",
    "existed_bytes": "Bytes that needed no saving: the store had them.",
    "failed_puts": "Objects that could not be saved.",
    "dropped_puts": "Objects not offered, because the store did not answer.",
}
CARRIED: Final[dict[str, str]] = {
    "got_bytes": "Bytes loaded, by what carried them.",
    "put_bytes": "Bytes saved, by what carried them.",
}
DURATIONS: Final[dict[str, str]] = {
    "lookup_seconds": "From asking the store what it has of a prompt to its answer, or to doing without.",
    "load_seconds": "A load, from its start to its end; transport is engine where any of its bytes came that way.",
    "save_seconds": "A save, from its start to its end; transport is engine where any of its bytes went that way.",
}
TRANSPORT: Final = frozenset({*CARRIED, "load_seconds", "save_seconds"})
BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """For all engines of one front end, by their numbers."""

    def __init__(
        self, kinds: Mapping[Any, Any], role: str, labels: Sequence[str], engines: Mapping[int, Sequence[object]]
    ) -> None:
        """`kinds`: what makes a Counter, a Gauge and a Histogram. `engines`: the values of `labels` for each.

        `role`: of which all counts are shown from the start; one engine may have connectors of other roles as well.
        """
        withdraw()
        self._engines = engines
        self._children: dict[tuple[int, str, str], Any] = {}
        self._families = {}
        for name, text in (COUNTERS | CARRIED | DURATIONS).items():
            names = [*labels, "role", *(["transport"] if name in TRANSPORT else [])]
            self._families[name] = (
                kinds[Histogram](f"larder_client_{name}", text, names, buckets=BUCKETS)
                if name in DURATIONS
                else kinds[Counter](f"larder_client_{name}", text, names)
            )
        gauge = kinds[Gauge]
        text = "1: the store answers, as of the engine's last step."
        self._families[UP] = gauge("larder_client_up", text, [*labels, "role"], multiprocess_mode="mostrecent")
        what = {"component": "connector", "version": own_version(), "python": platform.python_version()}
        build = gauge("larder_build_info", "1: this runs.", [*labels, *what], multiprocess_mode="mostrecent")
        for engine, values in engines.items():
            build.labels(*values, *what.values()).set(1)
            for name in (*COUNTERS, "lookup_seconds"):  # a rate needs a first value
                self._child(engine, role, name)

    def _child(self, engine: int, role: str, key: str) -> Any:
        """`key`: a name, and the transport where it is told by that."""
        child = self._children.get((engine, role, key))
        if child is None:
            name, *transport = key.split(" ")
            child = self._families[name].labels(*self._engines[engine], role, *transport)
            self._children[engine, role, key] = child
        return child

    def observe(self, counts: Mapping[str, float], role: str, engine: int) -> None:
        """Add a step's counts."""
        for key, count in counts.items():
            name = name_of(key)
            if name == UP:
                self._child(engine, role, key).set(count)
            elif name in DURATIONS:
                child, seconds = self._child(engine, role, without_seconds(key)), seconds_of(key)
                for _ in range(int(count)):
                    child.observe(seconds)
            else:
                self._child(engine, role, key).inc(count)


def withdraw() -> None:
    """A process may make one engine after another; vLLM does the same for its own metrics."""
    for collector, names in list(REGISTRY._collector_to_names.items()):
        if any(name.startswith(("larder_client_", "larder_build_info")) for name in names):
            REGISTRY.unregister(collector)
