"""What operators see and change: GET /status for everybody; /instances for those who know ADMIN_API_KEY.

JSON, messages and status codes are those of vLLM's disagg_proxy_demo.py where it has them, so that its callers keep
working. An engine is added only where --instance-allow permits, and once its answer to GET /v1/models shows that it
serves the model. Keys are compared in constant time and never logged.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Any, Final

from aiohttp import web

from services.proxy.addresses import AllowList, Refused, parse_instance
from services.proxy.config import ProxySettings
from services.proxy.core.engine import Address, Engine, Role
from services.proxy.core.membership import AlreadyThere, Membership, NotThere, TooMany, Unchanged
from services.proxy.engine_http.upstream import Upstream
from services.proxy.health import HealthChecks
from services.proxy.members import Members
from services.proxy.models import list_models
from services.proxy.siblings import Siblings
from services.proxy.state_file import StateFileError

logger = logging.getLogger(__name__)

_BODY_S: Final = 5.0
_BODY_BYTES_MAX: Final = 64 << 10
_VALIDATION_S: Final = 3.0
_STATUS: Final[dict[type[Unchanged], int]] = {AlreadyThere: 400, NotThere: 404, TooMany: 400}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Admin:
    def __init__(
        self,
        members: Members,
        health: HealthChecks,
        upstream: Upstream,
        settings: ProxySettings,
        siblings: Siblings | None = None,
    ) -> None:
        self._members = members
        self._siblings = siblings
        self._fleet = health.fleet
        self._upstream = upstream
        self._model = settings.model
        self._key = settings.admin_api_key
        self._allowed = AllowList(settings.instance_allow)

    def add_routes(self, app: web.Application) -> None:
        app.add_routes(
            [
                web.get("/status", self._get_status),
                web.get("/instances", self._guarded(self._get_instances)),
                web.post("/instances/add", self._guarded(self._add)),
                web.post("/instances/drain", self._guarded(self._drain)),
                web.post("/instances/remove", self._guarded(self._remove)),
            ]
        )

    async def check(self) -> None:
        """Raises StateFileError if engines were added where none are allowed any more."""
        await self._members.check(self._allowed)

    async def _get_status(self, _: web.Request) -> web.Response:
        prefill, decode = ([engine.address for engine in self._fleet.engines(role)] for role in Role)
        return web.json_response(
            {
                "prefill_node_count": len(prefill),
                "decode_node_count": len(decode),
                "prefill_nodes": prefill,
                "decode_nodes": decode,
            }
        )

    def instances(self) -> list[dict[str, Any]]:
        """Each engine as this worker sees it."""
        now = time.monotonic()
        return [_described(engine, now) for role in Role for engine in self._fleet.engines(role)]

    # -- with the key

    async def _get_instances(self, _: web.Request) -> web.Response:
        """As this worker sees them, but with the load of all workers."""
        listed = self.instances()
        if self._siblings is None:
            return web.json_response({"instances": listed})
        heard = await self._siblings.instances()
        theirs = {(each["type"], each["instance"]): each for each in listed}
        for each in chain.from_iterable(answer for answer in heard.answers.values() if answer is not None):
            if (own := theirs.get((each["type"], each["instance"]))) is not None:
                for name in ("legs", "prompt_tokens"):
                    own[name] += each[name]
        if heard.silent:
            detail = f"{heard.silent} of {self._siblings.count} workers did not answer; their legs are not counted."
            return web.json_response({"detail": detail, "instances": listed}, status=503)
        return web.json_response({"instances": listed})

    async def _add(self, request: web.Request) -> web.Response:
        role, address = parse_instance(await _read(request), self._members.is_expected)
        if not self._members.is_expected(address) and not await self._allowed.allows(address):
            raise Refused(403, "Instance address is not allowed: see --instance-allow.")
        await self._validate(address, request.headers.get("Authorization"))
        said = f"Added {address} to {role.value}_instances."
        return await self._change(lambda members: members.added(role, address), said)

    async def _drain(self, request: web.Request) -> web.Response:
        role, address = parse_instance(await _read(request), self._members.is_expected)
        said = f"Draining {address} of {role.value}_instances."
        return await self._change(lambda members: members.drained(role, address), said)

    async def _remove(self, request: web.Request) -> web.Response:
        role, address = parse_instance(await _read(request), self._members.is_expected)
        said = f"Removed {address} from {role.value}_instances."
        return await self._change(lambda members: members.removed(role, address), said)

    async def _change(self, change: Callable[[Membership], Membership], said: str) -> web.Response:
        try:
            silent = await self._members.change(change)
        except Unchanged as reason:
            raise Refused(_STATUS[type(reason)], str(reason)) from reason
        except StateFileError as reason:
            logger.error("not done: %s: %s", said, reason)
            raise Refused(500, f"The change was not made because it could not be saved: {reason}.") from reason
        logger.info("%s", said)
        if silent:
            logger.warning("%d workers were told but did not answer", silent)
            return web.json_response({"message": said, "silent_workers": silent}, status=202)
        return web.json_response({"message": said})

    async def _validate(self, address: Address, authorization: str | None) -> None:
        headers = {"Accept": "application/json"} | ({"Authorization": authorization} if authorization else {})
        listed = await list_models(self._upstream, address, headers, seconds=_VALIDATION_S)
        models = [model["id"] for model in listed or ()]
        if not models or (self._model and self._model not in models):
            logger.warning("%s was not added: it serves %s, not %s", address, models[:8], self._model or "a model")
            raise Refused(400, "Instance validation failed.")

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                self._check_key(request)
                return await handler(request)
            except Refused as refusal:
                return web.json_response({"detail": refusal.detail}, status=refusal.status)

        return guarded

    def _check_key(self, request: web.Request) -> None:
        given = request.headers.get("X-API-Key")
        if given is None:
            missing = {"type": "missing", "loc": ["header", "x-api-key"], "msg": "Field required", "input": None}
            raise Refused(422, [missing])
        if self._key is None:
            logger.error("%s %s is off: ADMIN_API_KEY is not set", request.method, request.path)
            raise Refused(500, "Server configuration error.")
        if not self.has_key(request):
            logger.warning("%s %s from %s: a wrong API key", request.method, request.path, request.remote)
            raise Refused(403, "Forbidden: Invalid API Key.")

    def has_key(self, request: web.Request) -> bool:
        """Whether it presents ADMIN_API_KEY."""
        given = request.headers.get("X-API-Key")
        if given is None or self._key is None:
            return False
        expected = self._key.get_secret_value()
        return hmac.compare_digest(given.encode(errors="surrogateescape"), expected.encode(errors="surrogateescape"))


async def _read(request: web.Request) -> bytes:
    content = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            while chunk := await request.content.readany():
                content += chunk
                if len(content) > _BODY_BYTES_MAX:
                    raise Refused(413, f"The body is over {_BODY_BYTES_MAX} bytes.")
    except TimeoutError as error:
        raise Refused(408, f"The body did not arrive within {_BODY_S:g} s.") from error
    except web.RequestPayloadError as error:
        raise Refused(400, "The body is malformed.") from error
    return bytes(content)


def _described(engine: Engine, now: float) -> dict[str, Any]:
    return {
        "type": engine.role.value,
        "instance": engine.address,
        "health": engine.health.value,
        "breaker": engine.breaker(now).value,
        "draining": engine.draining,
        "legs": engine.requests + engine.awaited,  # at 0 nothing needs it any more
        "prompt_tokens": engine.prompt_tokens,
        "models": None if engine.models is None else sorted(engine.models),
        "handover": None if engine.handover is None else engine.handover.value,
    }
