"""The running version of larder, as --version and the metrics show it and services tell each other."""

import platform
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

VERSION: Final = version("larder-server")


def show_build(registry: CollectorRegistry, component: str) -> None:
    """Adds a metric that tells what runs here, for those who watch a cluster during an upgrade."""
    labels = {"component": component, "version": VERSION, "python": platform.python_version()}
    Gauge("larder_build_info", "1: this runs", tuple(labels), registry=registry).labels(**labels).set(1)
