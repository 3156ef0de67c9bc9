"""What the proxy itself answers when it cannot serve a request: in the form of the request's path, with its id."""

from typing import Any

from aiohttp import web

from services.proxy.core.events import error_body, form_of
from services.proxy.story import STORY


def error_object(status: int, message: str) -> dict[str, Any]:
    """Where the path is not known."""
    return error_body(None, status, message)


def error_response(request: web.Request, status: int, message: str) -> web.Response:
    headers = {"X-Request-Id": request[STORY].id} | ({"Retry-After": "1"} if status in (429, 503) else {})
    return web.json_response(error_body(form_of(request.path), status, message), status=status, headers=headers)
