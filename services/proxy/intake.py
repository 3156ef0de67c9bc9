"""Takes requests in: reads a client's head and body within bounds, refuses what may not pass, and understands the rest
as far as the choice of engines needs it.

Keeps invariant 12 for its part: a body has a deadline and a size, and all bodies together take a bounded number of
bytes (admission).
"""

import asyncio
import re
from dataclasses import replace
from random import Random
from typing import Final

from aiohttp import web
from multidict import CIMultiDict

from services.proxy.admission import Admission
from services.proxy.call import Call
from services.proxy.config import ProxySettings
from services.proxy.core import guard, paths, requests
from services.proxy.core.engine import Role
from services.proxy.core.fleet import Fleet
from services.proxy.core.homes import response_followed
from services.proxy.core.requests import BadRequest
from services.proxy.core.scheduling import Ask
from services.proxy.engine_http.heads import for_engine, header_lines
from services.proxy.engine_http.upstream import Upstream
from services.proxy.responses import Responses
from services.proxy.story import STORY

BODY_BYTES_MAX: Final = 64 << 20
_BODY_S: Final = 60.0
_REQUEST_ID: Final = re.compile("(?!.*_addr_)[!-~]{1,128}")
"""Others would break headers and logs, or fill them, or tell engines where to fetch KV from: some connectors read it
out of the id (___prefill_addr_HOST:PORT___decode_addr_...)."""


def request_id(request: web.Request, random: Random) -> str:
    """The client's own, if it can be used."""
    given = request.headers.get("X-Request-Id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


class Intake:
    def __init__(
        self, settings: ProxySettings, upstream: Upstream, admission: Admission, fleet: Fleet, responses: Responses
    ) -> None:
        self._settings = settings
        self._upstream = upstream
        self._admission = admission
        self._fleet = fleet
        self._responses = responses

    async def call(self, request: web.Request, *, generates: bool) -> Call:
        """Reads and understands it; let_go() must follow. Generates: it is a completion, plain or chat. Raises
        BadRequest, Overloaded."""
        headers, lines = self.headers(request, reads=generates or request.path == "/v1/responses")
        with request[STORY].waits:
            body = await self.body(request)
        try:
            guard.check(body, headers.getall("Content-Type", ()), headers.getall("Content-Encoding", ()))
            repeatable = generates or paths.may_run_twice(request.method, request.path)
            call = Call(request, request[STORY], body, headers, lines, repeatable)
            self._understand(call, generates=generates)
        except BaseException:
            self.let_go(body)
            raise
        return call

    def let_go(self, body: bytes) -> None:
        """Gives back the room that the body took up."""
        self._admission.buffer(-len(body))

    async def send_home(self, call: Call) -> None:
        """Directs a request about a response to the engine that has it; if none has, any engine may say so. Raises
        BadRequest if that engine is gone."""
        id = call.follows
        if id is None or len(self._fleet.engines(Role.DECODE)) < 2:
            return
        if (home := await self._responses.home(id, call.lines)) is None:
            return
        engine = self._fleet.get(Role.DECODE, home)
        if engine is None or not engine.is_offered:
            raise BadRequest(404, f"Response with id '{id}' not found: the engine that made it is gone.")
        call.ask = replace(call.ask, home=home)

    def headers(self, request: web.Request, *, reads: bool) -> tuple[CIMultiDict[str], bytes]:
        """What engines get of a request's headers, and the same as it is sent. Reads: the proxy looks into the answers,
        so they must not be compressed."""
        dropped = ["Accept-Encoding"] if reads else []
        if self._settings.admin_api_key is not None:
            dropped.append("X-API-Key")  # the operators', which is no engine's business
        headers = for_engine(request.headers, dropped)
        headers["X-Request-Id"] = request[STORY].id
        self._upstream.authorize(headers)
        return headers, header_lines(headers)

    async def body(self, request: web.Request) -> bytes:
        """All of it, noted in the admission: let_go() must follow. Raises as call() does."""
        if (request.content_length or 0) > BODY_BYTES_MAX:
            raise _too_large()
        content = bytearray()
        whole = False
        try:
            if request.content.is_eof():  # it came with its head, as most do: no need of a timer
                body = request.content.read_nowait()
                self._admission.buffer(len(body))
                whole = True
                return body
            async with asyncio.timeout(_BODY_S):
                while chunk := await request.content.readany():
                    self._admission.buffer(len(chunk))
                    content += chunk
                    if len(content) > BODY_BYTES_MAX:
                        raise _too_large()
            whole = True
        except TimeoutError as error:
            raise BadRequest(408, f"the request body did not arrive within {_BODY_S:g} s") from error
        except web.RequestPayloadError as error:
            raise BadRequest(400, f"the request body is malformed: {error}") from error
        finally:
            if not whole:
                self._admission.buffer(-len(content))
        return bytes(content)

    def _understand(self, call: Call, *, generates: bool) -> None:
        request = call.request
        session = request.headers.get(self._settings.session_header, "")
        if generates:
            call.asked = requests.parse_request(request.content_type, call.body)
            call.streamed = requests.is_streamed(call.asked)
            call.ask = requests.ask_of(call.asked, session)
            call.story.prompt_tokens = call.ask.prompt_tokens
            return
        path = [part for part in request.path.split("/") if part]
        fields = requests.fields_of(call.body)
        call.ask = Ask(session=session, model=requests.model_of(fields))
        call.follows = response_followed(path, fields)
        if path == ["v1", "responses"]:
            call.made = self._responses.made


def _too_large() -> BadRequest:
    return BadRequest(413, f"the request body is over {BODY_BYTES_MAX} bytes")
