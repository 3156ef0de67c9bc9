"""Looks for engines while the proxy runs (--discover): asks each source again and again, and hands on what it finds.

One worker of the proxy does it for all. A source that fails, or whose answer is not credible, changes nothing: that is
logged once, counted, and the source asked again.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from larder.errors import LarderError
from prometheus_client import CollectorRegistry, Counter, Gauge

from services.proxy.core.discovery import Dns, Tally, Unheard, changes, source_of
from services.proxy.core.membership import Found
from services.proxy.members import Members
from services.proxy.sources import DnsSource, FileSource

logger = logging.getLogger(__name__)

DNS_EVERY_S: Final = 5.0
FILE_EVERY_S: Final = 1.0
_SHOWN_MAX: Final = 8


class Discovery:
    def __init__(self, sources: Sequence[str], members: Members, registry: CollectorRegistry) -> None:
        self._members = members
        parsed = {text: source_of(text) for text in sources}
        self._tally = Tally(parsed, members.found)
        self._asking: dict[str, FileSource | DnsSource] = {
            text: DnsSource(source) if isinstance(source, Dns) else FileSource(source)
            for text, source in parsed.items()
        }
        self._taken: tuple[Found, bool] = (members.found, False)
        self._turn = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._up = Gauge(
            "larder_proxy_discovery_up", "1: the source's last answer was believed", ("source",), registry=registry
        )
        self._failures = Counter(
            "larder_proxy_discovery_failures",
            "Answers that failed or were not believed: the source's engines stay as they were",
            ("source", "reason"),
            registry=registry,
        )
        self._changes = Counter(
            "larder_proxy_discovery_changes",
            "Engines found, or no longer found",
            ("role", "change"),
            registry=registry,
        )

    async def start(self) -> None:
        """Returns when each source has been asked once."""
        await asyncio.gather(*(self._ask(text) for text in self._asking))
        self._tasks = [asyncio.create_task(self._watch(text)) for text in self._asking]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, text: str) -> None:
        every_s = DNS_EVERY_S if isinstance(self._asking[text], DnsSource) else FILE_EVERY_S
        while True:
            await asyncio.sleep(every_s)
            await self._ask(text)

    async def _ask(self, text: str) -> None:
        try:
            await self._take_up(text)
        except Exception:  # or the source would never be asked again
            logger.exception("looking for engines at %s failed because of a defect in the proxy", text)

    async def _take_up(self, text: str) -> None:
        trouble: Unheard | None = None
        try:
            self._tally.heard(text, await self._asking[text].ask())
        except Unheard as unheard:
            trouble = unheard
            self._failures.labels(text, unheard.reason.value).inc()
        self._up.labels(text).set(trouble is None)
        if self._tally.is_news(text, None if trouble is None else trouble.reason, time.monotonic()):
            if trouble is None:
                logger.info("engines are found again at %s", text)
            else:
                logger.warning("no engines are found at %s: %s; the known ones stay", text, trouble)
        await self._hand_on()

    async def _hand_on(self) -> None:
        async with self._turn:
            await self._take()

    async def _take(self) -> None:
        found, is_complete = self._tally.found, self._tally.is_complete
        if (found, is_complete) == self._taken:
            return
        before, _ = self._taken
        try:
            silent = await self._members.find(found, is_complete=is_complete)
        except (LarderError, OSError) as error:
            logger.error("the engines found are not taken up yet: %s", error)
            return
        if silent:
            return  # they will be told again
        self._taken = found, is_complete
        for role, change, who in changes(before, found):
            self._changes.labels(role.value, change).inc(len(who))
            more = f" and {len(who) - _SHOWN_MAX} more" if len(who) > _SHOWN_MAX else ""
            logger.info("%s engines %s: %s%s", role.value, _SAID[change], ", ".join(who[:_SHOWN_MAX]), more)


_SAID: Final = {"joined": "found", "left": "no longer found; they finish what they have begun"}
