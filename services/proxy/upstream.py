"""Requests to engines over kept-alive connections. The only module that speaks HTTP as a client; it decides nothing.

An engine's answer is handed out once its first bytes are there, so that until then another engine can be asked. Nothing
is rewritten on the way: no redirects are followed, no cookies kept, no bodies decompressed. Every wait has a deadline.
"""

import asyncio
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from services.proxy.core.routing import Address, Outcome

_KEEPALIVE_S: Final = 4.0  # below the 5 s after which the engines' servers close an idle connection
_VALIDATION_S: Final = 5.0
_MODELS_BYTES_MAX: Final = 1 << 20
_OWN_HEADERS: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")  # the client's, or none
_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}) | {
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
}


class LegFailed(Exception):
    """No (whole) answer came; outcome says how, str() says why."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class Answer:
    """An engine's answer from its first bytes on. close() it always: before the end, that cancels the request."""

    def __init__(self, response: aiohttp.ClientResponse, first: bytes) -> None:
        self._response = response
        self.status = response.status
        self.reason = response.reason
        self.headers = end_to_end(response.headers)
        self.first = first
        self.is_events = response.content_type == "text/event-stream"

    async def read(self) -> bytes:
        """The next bytes as they came, empty at the end; raises LegFailed if the engine broke off."""
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise _leg_failed(error) from error

    async def drain(self) -> None:
        while await self.read():
            pass

    def close(self) -> None:
        self._response.close()


class Upstream:
    """Make it where an event loop runs."""

    def __init__(self, *, connect_timeout_s: float, api_key: str | None = None) -> None:
        self._api_key = api_key
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_OWN_HEADERS,
            trace_configs=[trace],
        )

    async def close(self) -> None:
        await self._session.close()

    async def send(
        self,
        to: Address,
        *,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        repeatable: bool,
        first_byte_s: float | None,
    ) -> Answer:
        """The answer, once its first bytes are there; raises LegFailed if they do not come (in time)."""
        response = None
        try:
            async with asyncio.timeout(first_byte_s):
                response = await self._open(to, method, target, headers, body, repeatable)
                return Answer(response, await response.content.readany())
        except BaseException as error:
            if response is not None:
                response.close()
            if isinstance(error, aiohttp.ClientError | OSError):  # TimeoutError is an OSError
                raise _leg_failed(error) from error
            raise

    async def model_ids(self, of: Address) -> list[str]:
        """What GET /v1/models of an engine lists; raises LegFailed if that is not an engine's answer."""
        headers = CIMultiDict({"Accept": "application/json"})
        answer = await self.send(
            of,
            method="GET",
            target="/v1/models",
            headers=headers,
            body=b"",
            repeatable=True,
            first_byte_s=_VALIDATION_S,
        )
        try:
            async with asyncio.timeout(_VALIDATION_S):
                content = answer.first
                while len(content) <= _MODELS_BYTES_MAX and (more := await answer.read()):
                    content += more
            if answer.status != 200 or len(content) > _MODELS_BYTES_MAX:
                raise LegFailed(Outcome.BROKEN, f"status {answer.status}, {len(content)} bytes")
            return [str(model["id"]) for model in json.loads(content)["data"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LegFailed(Outcome.BROKEN, "the answer is not a list of models") from error
        except TimeoutError as error:
            raise _leg_failed(error) from error
        finally:
            answer.close()

    async def _open(
        self, to: Address, method: str, target: str, headers: Mapping[str, str], body: bytes, repeatable: bool
    ) -> aiohttp.ClientResponse:
        sent = CIMultiDict(headers)
        if self._api_key is not None:
            sent["Authorization"] = f"Bearer {self._api_key}"
        url = URL(f"http://{to}{target}", encoded=True)
        while True:
            connection = SimpleNamespace(reused=False)
            try:
                return await self._session.request(
                    method, url, headers=sent, data=body or None, allow_redirects=False, trace_request_ctx=connection
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # An idle connection that the engine closed says nothing about the engine. Each turn uses one up.
                if not connection.reused or not repeatable:
                    raise


def end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The headers without those that speak of one connection only (RFC 9110, 7.6.1)."""
    listed = ",".join(headers.getall("Connection", ()))
    dropped = _HOP_BY_HOP.union(name.strip().lower() for name in listed.split(","))
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)


async def _note_reuse(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: Any) -> None:
    context.trace_request_ctx.reused = True


def _leg_failed(error: Exception) -> LegFailed:
    reason = str(error) or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | aiohttp.InvalidURL):
        return LegFailed(Outcome.UNREACHABLE, reason)
    if isinstance(error, TimeoutError):
        return LegFailed(Outcome.TIMED_OUT, "no answer in time")
    return LegFailed(Outcome.BROKEN, reason)
