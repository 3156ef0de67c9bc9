"""Metrics of several workers as those of one: what is added up, what is not, and what outlives a worker."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from services.proxy.sums import Samples, exposition, kept, merged

ODD = 'a "quoted"\\ name\n'


class Worker:
    def __init__(self, path: Path) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("larder_proxy_requests", "Requests ended", ("path",), registry=self.registry)
        self.seconds = Histogram("seconds", "Time", buckets=(1, 2), registry=self.registry)
        self.in_flight = Gauge("larder_proxy_in_flight", "Under way", registry=self.registry)
        self.up = Gauge("larder_proxy_engine_up", "1: it answers", ("engine",), registry=self.registry)
        self.samples = Samples(self.registry, path)


def read(text: bytes) -> dict[tuple[str, ...], float]:
    samples = [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def test_counters_and_histograms_are_added_up_and_gauges_as_each_needs(tmp_path: Path) -> None:
    first, second = Worker(tmp_path / "0.samples"), Worker(tmp_path / "1.samples")
    first.requests.labels("/a").inc(2)
    second.requests.labels("/a").inc(3)
    second.requests.labels(ODD).inc()
    first.seconds.observe(0.5)
    second.seconds.observe(1.5)
    for worker, in_flight, up in ((first, 4, 0), (second, 5, 1)):
        worker.in_flight.set(in_flight)
        worker.up.labels("e").set(up)
    shown = read(exposition(merged([first.samples.take(), second.samples.take()])))
    assert shown == {
        ("larder_proxy_requests_total", "/a"): 5,
        ("larder_proxy_requests_total", ODD): 1,
        ("seconds_bucket", "1.0"): 1,
        ("seconds_bucket", "2.0"): 2,
        ("seconds_bucket", "+Inf"): 2,
        ("seconds_count",): 2,
        ("seconds_sum",): 2.0,
        ("larder_proxy_in_flight",): 9,
        ("larder_proxy_engine_up", "e"): 1,
    }


def test_a_counter_that_was_shown_outlives_its_worker_and_a_gauge_does_not(tmp_path: Path) -> None:
    path = tmp_path / "0.samples"
    assert kept(path) == []
    for life in (1, 2, 3):
        worker = Worker(path)
        worker.requests.labels("/a").inc()
        worker.in_flight.set(7)
        for _ in range(2):  # showing it again counts nothing twice
            shown = read(exposition(worker.samples.take()))
            assert shown["larder_proxy_requests_total", "/a"] == life
            assert shown[("larder_proxy_in_flight",)] == 7
        assert {family[0] for family in kept(path)} == {"larder_proxy_requests", "seconds"}


def test_numbers_that_cannot_be_saved_are_shown_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(tmp_path / "missing" / "0.samples")
    worker.requests.labels("/a").inc()
    assert read(exposition(worker.samples.take()))["larder_proxy_requests_total", "/a"] == 1
    assert "No such file" in caplog.text
