"""The `proxy` command: settings in, a serving proxy out, drained on SIGTERM."""

import sys

from services.common.service import announce, run
from services.common.settings import load
from services.proxy.config import ProxySettings
from services.proxy.server import serve, tune
from services.proxy.workers import supervise


def main() -> None:
    settings = load(ProxySettings, prog="proxy")
    if settings.workers > 1:
        sys.exit(run(lambda stop: supervise(settings, stop, announce), prog="proxy", log_level=settings.log_level))
    tune()
    sys.exit(run(lambda stop: serve(settings, stop, announce), prog="proxy", log_level=settings.log_level))
