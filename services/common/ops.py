"""The HTTP port every service has for its operators: /health (alive), /ready (serving), /metrics (Prometheus)."""

from collections.abc import Callable, Sequence

from aiohttp import web
from larder.addresses import join
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

_METRICS_TYPE = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}


class Ops:
    """Serves one registry. Each request of /ready calls `ready`, and `remark` for a line to add.

    `pages`: routes of one service alone.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        remark: Callable[[], str] = str,
        pages: Sequence[web.RouteDef] = (),
    ) -> None:
        self._host, self._port = host, port
        self._registry = registry
        self._ready = ready
        self._remark = remark
        ProcessCollector(registry=registry)
        app = web.Application()
        app.add_routes([web.get("/health", self._get_health), web.get("/ready", self._get_ready)])
        app.add_routes([web.get("/metrics", self._get_metrics), *pages])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self) -> int:
        """Returns the port it listens on; raises OSError when it cannot."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise OSError(
                f"cannot listen on {join(self._host, self._port)} for metrics: {error.strerror}; "
                "choose another --metrics-port (0 takes a free one)"
            ) from error
        port: int = self._runner.addresses[0][1]
        return port

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _get_health(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _get_ready(self, _: web.Request) -> web.Response:
        ready, remark = self._ready(), self._remark()
        text = ("ready\n" if ready else "not ready\n") + (f"{remark}\n" if remark else "")
        return web.Response(text=text, status=200 if ready else 503)

    async def _get_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers=_METRICS_TYPE)
