"""What the proxy itself answers when it cannot serve a request: in the shape of the request's path, with its id."""

from typing import Any, Final

from aiohttp import web

from services.proxy.core.events import error_body, form_of

OUTCOME: Final = web.RequestKey("outcome", str)
ID: Final = web.RequestKey("id", str)


def error_object(status: int, message: str) -> dict[str, Any]:
    """Where no path is known."""
    return error_body(None, status, message)


def error_response(request: web.Request, status: int, message: str) -> web.Response:
    headers = {"X-Request-Id": request[ID]} | ({"Retry-After": "1"} if status in (429, 503) else {})
    return web.json_response(error_body(form_of(request.path), status, message), status=status, headers=headers)
