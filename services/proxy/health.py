"""Probes every engine's health and tells the fleet: a lost engine is passed over, one that is back is offered again.

It also finds out which prefill engines push their KV (MooncakeConnector), by the bootstrap server beside them.
"""

import asyncio
import contextlib
import logging
from typing import Final

from prometheus_client import CollectorRegistry

from services.proxy.config import ProxySettings
from services.proxy.core import legs
from services.proxy.core.endpoint import endpoint_of
from services.proxy.core.engine import Address, Change, Engine, Handover, Health, Probe, Role
from services.proxy.core.fleet import Fleet
from services.proxy.core.outcomes import Outcome
from services.proxy.engine_http.upstream import LegFailed, Upstream
from services.proxy.metrics import Metrics
from services.proxy.models import list_models

logger = logging.getLogger(__name__)

UP_EVERY_S: Final = 1.0
LOST_EVERY_S: Final = 0.5  # bounds how late an engine that is back is noticed
PROBE_S: Final = 2.0
LIST_EVERY_S: Final = 5.0  # bounds how late a newly loaded model or adapter is noticed
_ANSWER_BYTES_MAX: Final = 1 << 20


class HealthChecks:
    """One task for each engine, from start() or follow() to its removal from the fleet."""

    def __init__(self, settings: ProxySettings, upstream: Upstream, registry: CollectorRegistry) -> None:
        self.fleet = Fleet(self._changed)
        self.metrics = Metrics(registry, self.fleet)
        self._upstream = upstream
        self._port = settings.mooncake_bootstrap_port
        self._pushes = settings.handover in ("auto", Handover.PUSH)
        self._started = False
        self._tasks: dict[Engine, asyncio.Task[None]] = {}
        self._soon: dict[Engine, asyncio.Event] = {}
        self._listed_at: dict[Engine, float] = {}

    async def start(self) -> None:
        """Returns when each engine was asked once. Until then follow() asks nobody."""
        self._started = True
        engines = [engine for role in Role for engine in self.fleet.engines(role)]
        await asyncio.gather(*(self._check(engine) for engine in engines))
        self.follow(asked=True)

    def follow(self, *, asked: bool = False) -> None:
        """Starts watching engines that are new in the fleet, and stops for those that are no longer in it."""
        if not self._started:
            return
        here = [engine for role in Role for engine in self.fleet.engines(role)]
        for engine in here:
            if engine not in self._tasks:
                self._soon[engine] = asyncio.Event()
                self._tasks[engine] = asyncio.create_task(self._watch(engine, asked))
        for engine in [engine for engine in self._tasks if engine not in here]:
            self._tasks.pop(engine).cancel()
            del self._soon[engine]
            self._listed_at.pop(engine, None)
        self.metrics.keep_only({(engine.role, engine.address) for engine in here})

    def list_soon(self) -> None:
        """Asks all engines for their models again: some may have changed."""
        self._listed_at.clear()
        for soon in self._soon.values():
            soon.set()

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _changed(self, engine: Engine, change: Change) -> None:
        """The fleet's listener."""
        self.metrics.changes.labels(engine.role.value, engine.address, change.value).inc()
        level = logging.INFO if change in (Change.BACK, Change.CLOSED) else logging.WARNING
        logger.log(level, "%s engine %s: %s", engine.role.value, engine.address, _SAID[change])
        if change is Change.LOST and (soon := self._soon.get(engine)) is not None:
            soon.set()

    async def _watch(self, engine: Engine, asked: bool) -> None:
        soon = self._soon[engine]
        while True:
            if not asked:
                try:
                    await self._check(engine)
                except Exception:  # or nobody would look at the engine any more
                    logger.exception("the probe of %s failed because of a defect in the proxy", engine.address)
            asked = False
            soon.clear()
            with contextlib.suppress(TimeoutError):
                is_well = engine.health is Health.UP and not engine.unanswered
                async with asyncio.timeout(UP_EVERY_S if is_well else LOST_EVERY_S):
                    await soon.wait()
                await asyncio.sleep(LOST_EVERY_S)  # a leg has found it lost this moment

    async def _check(self, engine: Engine) -> None:
        """One probe. What an engine serves and how it hands over are known before it is offered."""
        probe, ids = await asyncio.gather(self._probe(engine.address), self._transfer_ids(engine))
        if ids:
            self.fleet.learned(engine, Handover.PUSH, ids)
        if probe is Probe.OK and (models := await self._models(engine)):
            self.fleet.listed(engine, models)
        if probe is not None and self.fleet.probed(engine, probe):
            self._upstream.cut(engine.address, silent_s=PROBE_S, why="it no longer answers")

    async def _models(self, engine: Engine) -> frozenset[str]:
        """The models it lists, if it is time to ask; else, or if it does not say, none."""
        now = asyncio.get_running_loop().time()
        if engine.health is Health.UP and now - self._listed_at.get(engine, -LIST_EVERY_S) < LIST_EVERY_S:
            return frozenset()
        self._listed_at[engine] = now
        listed = await list_models(self._upstream, engine.address, {"Accept": "application/json"}, seconds=PROBE_S)
        return frozenset(model["id"] for model in listed or ())

    async def _probe(self, address: Address) -> Probe | None:
        """Over a new connection, since the next leg may need one. None: there was no way to ask."""
        try:
            status, _ = await self._upstream.get(
                address, "/health", seconds=PROBE_S, bytes_max=_ANSWER_BYTES_MAX, anew=True
            )
        except LegFailed as failure:
            if failure.is_mute:
                return Probe.NO_ANSWER
            return _PROBES.get(failure.outcome, Probe.NO_CONNECTION)
        return Probe.REFUSED if status >= 500 else Probe.OK  # vLLM says 503 when its core is dead

    async def _transfer_ids(self, engine: Engine) -> tuple[str, ...]:
        """What the bootstrap server beside a prefill engine calls it, if that is not known yet; empty without one."""
        known = engine.handover is not None and engine.health is Health.UP
        if known or not self._pushes or engine.role is not Role.PREFILL:
            return ()
        host = Address(endpoint_of(engine.address).beside(self._port))
        try:
            status, content = await self._upstream.get(
                host, "/query", seconds=PROBE_S, bytes_max=_ANSWER_BYTES_MAX, with_key=False
            )
        except LegFailed:
            return ()
        return legs.transfer_ids(content) if status == 200 else ()


_PROBES: Final = {Outcome.UNREACHABLE: Probe.REFUSED, Outcome.BUSY: None}
_SAID: Final = {
    Change.LOST: "takes no new requests, or does not answer; it is passed over until it does",
    Change.BACK: "answers",
    Change.OPENED: "fails the requests it is sent; it is asked last for a while",
    Change.CLOSED: "serves again",
}
