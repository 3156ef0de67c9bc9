"""What the proxy itself answers when it cannot serve a request: OpenAI's shape, with the request's id."""

from typing import Final

from aiohttp import web

OUTCOME: Final = web.RequestKey("outcome", str)
ID: Final = web.RequestKey("id", str)


def error_object(status: int, message: str) -> dict[str, object]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def error_response(request: web.Request, status: int, message: str) -> web.Response:
    headers = {"X-Request-Id": request[ID]} | ({"Retry-After": "1"} if status in (429, 503) else {})
    return web.json_response(error_object(status, message), status=status, headers=headers)
