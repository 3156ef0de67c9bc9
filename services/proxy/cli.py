"""The `proxy` command: settings in, a serving proxy out, drained on SIGTERM."""

import sys
from collections.abc import Sequence

from services.common.service import announce, run
from services.common.settings import load
from services.proxy.config import ProxySettings
from services.proxy.server import serve, tune
from services.proxy.workers import supervise


def main(argv: Sequence[str] | None = None, called: str = "") -> None:
    settings = load(ProxySettings, prog="proxy", argv=argv, called=called)
    main_of = supervise if settings.workers > 1 else serve
    tune()
    status = run(
        lambda stop: main_of(settings, stop, announce),
        prog="proxy",
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
    sys.exit(status)
