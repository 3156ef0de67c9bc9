"""What operators see and change: GET /status, and POST /instances/add for those who know ADMIN_API_KEY.

JSON, messages and status codes are those of vLLM's disagg_proxy_demo.py, so that its callers keep working. An engine is
added only after it has answered GET /v1/models as an engine that serves the model.
"""

import asyncio
import hmac
import ipaddress
import json
import logging
from typing import Final

from aiohttp import web

from services.proxy.config import ProxySettings
from services.proxy.core.fleet import Address, Role
from services.proxy.health import HealthChecks
from services.proxy.models import list_models
from services.proxy.upstream import Upstream

logger = logging.getLogger(__name__)

_BODY_S: Final = 5.0


class Refused(Exception):
    def __init__(self, status: int, detail: object) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class Admin:
    def __init__(self, health: HealthChecks, upstream: Upstream, settings: ProxySettings) -> None:
        self._health = health
        self._fleet = health.fleet
        self._upstream = upstream
        self._model = settings.model
        self._key = settings.admin_api_key

    def add_routes(self, app: web.Application) -> None:
        app.add_routes([web.get("/status", self._get_status), web.post("/instances/add", self._post_instance)])

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

    async def _post_instance(self, request: web.Request) -> web.Response:
        try:
            self._check_key(request)
            async with asyncio.timeout(_BODY_S):
                body = await request.read()
            role, address = _parse(body)
            await self._validate(address)
            if not self._fleet.add(role, address):
                raise Refused(400, "Instance already exists.")
            self._health.follow()
        except TimeoutError:
            return web.json_response({"detail": f"The body did not arrive within {_BODY_S:g} s."}, status=408)
        except Refused as refusal:
            return web.json_response({"detail": refusal.detail}, status=refusal.status)
        logger.info("added %s to the %s engines", address, role.value)
        return web.json_response({"message": f"Added {address} to {role.value}_instances."})

    def _check_key(self, request: web.Request) -> None:
        given = request.headers.get("X-API-Key")
        if given is None:
            missing = {"type": "missing", "loc": ["header", "x-api-key"], "msg": "Field required", "input": None}
            raise Refused(422, [missing])
        if self._key is None:
            logger.error("POST /instances/add is off: ADMIN_API_KEY is not set")
            raise Refused(500, "Server configuration error.")
        expected = self._key.get_secret_value()
        if not hmac.compare_digest(given.encode(errors="surrogateescape"), expected.encode(errors="surrogateescape")):
            raise Refused(403, "Forbidden: Invalid API Key.")

    async def _validate(self, address: Address) -> None:
        listed = await list_models(self._upstream, address, {"Accept": "application/json"})
        models = [model["id"] for model in listed or ()]
        if not models or (self._model and self._model not in models):
            logger.warning("%s was not added: it serves %s, not %s", address, models[:8], self._model or "a model")
            raise Refused(400, "Instance validation failed.")


def _parse(body: bytes) -> tuple[Role, Address]:
    """The order of the complaints is the demo's."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "Invalid JSON.") from error
    if not isinstance(asked, dict) or asked.get("type") not in list(Role):
        raise Refused(400, "Invalid instance type.")
    instance = asked.get("instance")
    if not isinstance(instance, str) or ":" not in instance:
        raise Refused(400, "Invalid instance format.")
    host, _, port = instance.rpartition(":")
    if not _is_host(host) or not (port.isascii() and port.isdigit()):
        raise Refused(400, "Invalid instance address.")
    if len(port) > 5 or not 0 < int(port) < 65536:
        raise Refused(400, "Invalid port number.")
    return Role(asked["type"]), Address(f"{host}:{int(port)}")


def _is_host(host: str) -> bool:
    """Localhost or an IP literal: a name could point elsewhere after it was checked."""
    if host == "localhost":
        return True
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        version = ipaddress.ip_address(host[1:-1] if bracketed else host).version
    except ValueError:
        return False
    return version == (6 if bracketed else 4)
