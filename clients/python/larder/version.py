"""The version of this client."""

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """That of the package it came with: the client by itself, or the services."""
    for name in ("larder", "larder-server"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
