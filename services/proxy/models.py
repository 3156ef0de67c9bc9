"""GET /v1/models of the whole fleet: what any decode engine serves."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.proxy.core.fleet import Address
from services.proxy.upstream import LegFailed, Upstream

_SECONDS: Final = 5.0
_BYTES_MAX: Final = 1 << 20


async def list_models(
    upstream: Upstream, engine: Address, headers: Mapping[str, str], *, seconds: float = _SECONDS
) -> list[dict[str, Any]] | None:
    """What GET /v1/models of an engine lists; None if that is not an engine's answer."""
    try:
        status, content = await upstream.get(
            engine, "/v1/models", seconds=seconds, bytes_max=_BYTES_MAX, headers=headers
        )
        listed = json.loads(content)["data"] if status == 200 else None
    except (LegFailed, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(listed, list):
        return None
    return [model for model in listed if isinstance(model, dict) and isinstance(model.get("id"), str)]


async def merged_models(
    upstream: Upstream, engines: Sequence[Address], headers: Mapping[str, str]
) -> dict[str, Any] | None:
    """Each model once, as the first engine that serves it describes it; None if no engine answers."""
    answers = await asyncio.gather(*(list_models(upstream, engine, headers) for engine in engines))
    if all(models is None for models in answers):
        return None
    merged = {model["id"]: model for models in reversed(answers) if models is not None for model in reversed(models)}
    return {"object": "list", "data": list(reversed(merged.values()))}
