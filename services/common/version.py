"""The version of larder that runs, as --version and the metrics show it and as services tell each other."""

import platform
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

VERSION: Final = version("larder-server")


def show_build(registry: CollectorRegistry, component: str) -> None:
    """What runs here, for those who look at a cluster during its upgrade."""
    labels = {"component": component, "version": VERSION, "python": platform.python_version()}
    Gauge("larder_build_info", "1: this runs", tuple(labels), registry=registry).labels(**labels).set(1)
