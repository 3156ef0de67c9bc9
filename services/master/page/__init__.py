"""The page at / of the master's metrics port, and what it shows as JSON at /api/overview: read-only, without secrets.

The files beside this module are sent as they are, and nothing is loaded from elsewhere. What they show comes from the
network and is never taken for HTML: the page makes text of it, and the policy below would run nothing else.
"""

import json
import time
from importlib.resources import files
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from services.master.overview import Overview

CACHE_S: Final = 1.0
_TYPES: Final = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "chart.js": "text/javascript",
    "words.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def routes(overview: Overview) -> list[web.RouteDef]:
    folder = files(__name__)
    pages = [
        web.get("/" if name == "index.html" else f"/{name}", _sends(folder.joinpath(name).read_text("utf-8"), kind))
        for name, kind in _TYPES.items()
    ]
    return [*pages, web.get("/api/overview", _Answers(overview).get)]


def _sends(text: str, kind: str) -> Handler:
    async def send(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type=kind, charset="utf-8", headers=_HEADERS)

    return send


class _Answers:
    """One answer a second, however many ask."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._body = b""
        self._until = 0.0

    async def get(self, _: web.Request) -> web.Response:
        now = time.monotonic()
        if now >= self._until:
            self._body = json.dumps(self._overview.snapshot()).encode()
            self._until = now + CACHE_S
        headers = _HEADERS | {"Cache-Control": "no-store"}
        return web.Response(body=self._body, content_type="application/json", charset="utf-8", headers=headers)
