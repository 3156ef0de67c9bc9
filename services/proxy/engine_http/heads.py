"""Heads of requests and answers: which headers are passed on, and the bytes they are sent as. No I/O.

A header's value is text in which bytes that are not UTF-8 are lone surrogates, so that they leave as they came.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from multidict import CIMultiDict, MultiMapping

from services.proxy.core.endpoint import Endpoint, endpoint_of
from services.proxy.core.engine import Address

_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}) | {
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
}
_CONTENT: Final = frozenset({"content-type", "content-encoding", "content-language", "content-disposition"})
"""They say how to read a body: no Connection header may take them away from it (RFC 9110, 7.6.1)."""
_PLACES: Final = frozenset({"location", "content-location", "refresh"})
_AUTHORITY: Final = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//[^/?#\s\"'<>,;]*", re.I)
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


def end_to_end(headers: MultiMapping[str]) -> CIMultiDict[str]:
    """The headers without those that concern one connection only (RFC 9110, 7.6.1)."""
    kept = CIMultiDict(headers)
    for listed in headers.getall("Connection", ()):
        for name in listed.split(","):
            if name.strip().lower() not in _CONTENT:
                kept.popall(name.strip(), None)
    for name in _HOP_BY_HOP:
        kept.popall(name, None)
    return kept


def is_websocket(headers: MultiMapping[str]) -> bool:
    """Whether a client wants to switch to WebSocket; other upgrades are ignored, as they may be (h2c)."""
    listed = ",".join(headers.getall("Connection", ())).lower().split(",")
    return "upgrade" in map(str.strip, listed) and headers.get("Upgrade", "").strip().lower() == "websocket"


def for_engine(headers: MultiMapping[str], dropped: Iterable[str]) -> CIMultiDict[str]:
    """A client's headers, without those that are made for each engine anew."""
    kept = end_to_end(headers)
    for name in ("Host", "Content-Length", "Expect", *dropped):
        kept.popall(name, None)
    return kept


def for_client(headers: MultiMapping[str], to: Address) -> CIMultiDict[str]:
    """An engine's headers without its address: locations are as the client reaches them, through the proxy."""
    kept = end_to_end(headers)
    kept.popall("Alt-Svc", None)  # where else it listens
    engine = endpoint_of(to)
    if not any(name.lower() in _PLACES or engine.authority in value for name, value in kept.items()):
        return kept
    named = [
        (name, _here(value, engine) if name.lower() in _PLACES or f"//{engine.authority}" in value else value)
        for name, value in kept.items()
    ]
    return CIMultiDict([(name, value) for name, value in named if engine.authority not in value])


def _here(value: str, engine: Endpoint) -> str:
    """Its URLs, as paths of the proxy."""
    head, *rest = _AUTHORITY.split(value)
    paths = [f"/{path.removeprefix(engine.base).removeprefix('/')}" for path in rest]
    if not head.startswith("/"):
        return head + "".join(paths)
    is_under = engine.base and f"{head}/".startswith(f"{engine.base}/")
    return (head.removeprefix(engine.base) if is_under else head) + "".join(paths)


def header_lines(headers: Mapping[str, str]) -> bytes:
    """The headers as sent, with bytes that are not UTF-8 as they came. Raises ValueError if one would be read as more
    than itself."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    _check_lines(lines, len(headers))
    return lines.encode(errors="surrogateescape")


def request_head(method: str, target: str, host: str, lines: bytes, body_bytes: int) -> bytes:
    """Lines: its other headers. Raises as header_lines() does."""
    first = f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n"
    _check_lines(first, 2)
    if first.count(" ") != 3:
        raise ValueError("a space in a method, a target or a host")
    if body_bytes or method not in _WITHOUT_BODY:
        return b"%b%bContent-Length: %d\r\n\r\n" % (first.encode(), lines, body_bytes)
    return b"%b%b\r\n" % (first.encode(), lines)


def _check_lines(lines: str, count: int) -> None:
    if lines.count("\n") != count or lines.count("\r") != count or "\0" in lines:
        raise ValueError("a line break or a NUL within a header")
