"""GET /v1/models for the whole fleet: what any decode engine serves."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from services.proxy.core.engine import Address
from services.proxy.engine_http.upstream import LegFailed, Upstream

_SECONDS: Final = 5.0
_BYTES_MAX: Final = 1 << 20


class Refusal(NamedTuple):
    """An engine's answer to a client that may not see its models."""

    status: int
    body: bytes


async def list_models(
    upstream: Upstream, engine: Address, headers: Mapping[str, str], *, seconds: float = _SECONDS
) -> list[dict[str, Any]] | None:
    """What an engine's GET /v1/models lists; None if the answer is not an engine's."""
    listed = await _ask(upstream, engine, headers, seconds)
    return None if isinstance(listed, Refusal) else listed


async def merged_models(
    upstream: Upstream, engines: Sequence[Address], headers: Mapping[str, str]
) -> dict[str, Any] | Refusal | None:
    """Each model once, as the first engine that serves it describes it. If none lists any: how one refused, if that is
    the client's fault; else None."""
    answers = await asyncio.gather(*(_ask(upstream, engine, headers, _SECONDS) for engine in engines))
    lists = [answer for answer in answers if isinstance(answer, list)]
    if not lists:
        return next((answer for answer in answers if isinstance(answer, Refusal)), None)
    merged = {model["id"]: model for models in reversed(lists) for model in reversed(models)}
    return {"object": "list", "data": list(reversed(merged.values()))}


async def _ask(
    upstream: Upstream, engine: Address, headers: Mapping[str, str], seconds: float
) -> list[dict[str, Any]] | Refusal | None:
    try:
        status, content = await upstream.get(
            engine, "/v1/models", seconds=seconds, bytes_max=_BYTES_MAX, headers=headers
        )
        if 400 <= status < 500:
            return Refusal(status, content)
        listed = json.loads(content)["data"] if status == 200 else None
    except (LegFailed, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(listed, list):
        return None
    return [model for model in listed if isinstance(model, dict) and isinstance(model.get("id"), str)]
