"""Where a response is: the engine that made it keeps it in memory, and no other can continue it or return it.

This worker remembers those it saw; for others it asks the other workers, and then the engines.
"""

import asyncio
from typing import Final
from urllib.parse import quote

from services.proxy.core.engine import Address, Health, Role
from services.proxy.core.fleet import Fleet
from services.proxy.core.homes import Homes, response_made
from services.proxy.engine_http.upstream import LegFailed, Upstream
from services.proxy.siblings import Siblings

_ASK_S: Final = 2.0


class Responses:
    def __init__(self, fleet: Fleet, upstream: Upstream, siblings: Siblings | None) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._siblings = siblings
        self._homes = Homes()

    def made(self, answer: bytes, by: Address) -> None:
        """An engine's answer begins with these bytes."""
        if (id := response_made(answer)) is not None:
            self._homes.note(id, by)

    def known(self, id: str) -> Address | None:
        return self._homes.get(id)

    async def home(self, id: str, lines: bytes) -> Address | None:
        """None: nobody has it. Lines: the client's headers."""
        if (home := self._homes.get(id)) is not None:
            return home
        if self._siblings is not None and (told := await self._siblings.home(id)) is not None:
            home = Address(told)
        else:
            asked = [each.address for each in self._fleet.engines(Role.DECODE) if each.health is not Health.GONE]
            has = await asyncio.gather(*(self._has(engine, id, lines) for engine in asked))
            home = next((engine for engine, it_has in zip(asked, has, strict=True) if it_has), None)
        if home is not None:
            self._homes.note(id, home)
        return home

    async def _has(self, engine: Address, id: str, lines: bytes) -> bool:
        try:
            with self._upstream.leg(engine, _ASK_S) as leg:
                target = f"/v1/responses/{quote(id, safe='')}"
                answer = await leg.send(method="GET", target=target, lines=lines, body=b"", repeatable=True)
                return answer.status == 200
        except LegFailed:
            return False
