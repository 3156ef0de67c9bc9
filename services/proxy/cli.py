"""The `proxy` command: settings in, a serving proxy out, drained on SIGTERM."""

import asyncio
import gc
import sys

from prometheus_client import CollectorRegistry

from services.common.service import announce, run
from services.common.settings import load
from services.proxy.app import Proxy
from services.proxy.config import ProxySettings
from services.proxy.server import listen, make_runner
from services.proxy.upstream import Upstream


def main() -> None:
    settings = load(ProxySettings, prog="proxy")
    gc.freeze()
    gc.set_threshold(50_000)  # requests leave hardly any cycles behind: look for them every few hundred
    sys.exit(run(lambda stop: serve(settings, stop), prog="proxy", log_level=settings.log_level))


async def serve(settings: ProxySettings, stop: asyncio.Event) -> None:
    key = settings.openai_api_key
    upstream = Upstream(
        connect_timeout_s=settings.connect_timeout, api_key=None if key is None else key.get_secret_value()
    )
    proxy = Proxy(settings, upstream, CollectorRegistry(), accepting=lambda: not stop.is_set())
    runner = make_runner(proxy)
    try:
        port = await listen(runner, settings.host, settings.port)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        announce(f"proxy ready: http://{host}:{port}")
        await stop.wait()
    finally:
        await runner.cleanup()
        await upstream.close()
