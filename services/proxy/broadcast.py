"""Requests that change engines: they go to all of them, and every engine's answer is reported.

An adapter that only one engine has loaded fails every other request for it. Changes that a reload cannot undo (weights,
code, scale) do not go through the proxy.
"""

import asyncio
import logging
from typing import Final

from aiohttp import web

from services.proxy.core.engine import Address, Role
from services.proxy.core.fleet import Fleet
from services.proxy.engine_http.upstream import LegFailed, Upstream

logger = logging.getLogger(__name__)

PATHS: Final = frozenset(
    {
        *("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
        *("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"),
        *("/sleep", "/wake_up", "/pause", "/resume"),
        *("/start_profile", "/stop_profile"),
    }
)
_ANSWER_BYTES_MAX: Final = 64 << 10


def engine_change(path: str) -> str | None:
    """The one of PATHS that engines, or what stands in front of them, may take it for."""
    plain = "/" + "/".join(part for part in path.split("/") if part)
    return plain if plain in PATHS else None


class Broadcast:
    def __init__(self, fleet: Fleet, upstream: Upstream, *, seconds: float) -> None:
        self._fleet = fleet
        self._upstream = upstream
        self._seconds = seconds
        self._sending: set[asyncio.Task[web.Response]] = set()

    async def send(self, path: str, query: str, lines: bytes, body: bytes) -> web.Response:
        """200 if every engine did it; their status, if it is the same; else 502. A caller that is cancelled does not
        stop it halfway."""
        sending = asyncio.create_task(self._send_all(path, query, lines, body))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)
        return await asyncio.shield(sending)

    async def _send_all(self, path: str, query: str, lines: bytes, body: bytes) -> web.Response:
        target = f"{path}?{query}" if query else path
        roles: dict[Address, list[str]] = {}
        for role in Role:
            for engine in self._fleet.engines(role):
                roles.setdefault(engine.address, []).append(role.value)
        answers = await asyncio.gather(*(self._send(each, target, lines, body) for each in roles))
        results = [
            {"instance": engine, "types": roles[engine], "status": status, "answer": answer}
            for engine, (status, answer) in zip(roles, answers, strict=True)
        ]
        statuses = {status for status, _ in answers}
        status = 200 if not statuses else statuses.pop() if len(statuses) == 1 else None
        logger.info("%s: %s", path, ", ".join(f"{each['instance']} {each['status']}" for each in results))
        return web.json_response({"results": results}, status=status or 502)

    async def _send(self, to: Address, target: str, lines: bytes, body: bytes) -> tuple[int | None, str]:
        """Its status, None if there is none, and its words."""
        try:
            with self._upstream.leg(to, self._seconds) as leg:
                answer = await leg.send(method="POST", target=target, lines=lines, body=body, repeatable=False)
                content = await answer.read_all(_ANSWER_BYTES_MAX)
        except LegFailed as failure:
            return None, str(failure)
        return answer.status, content.decode(errors="replace")
