"""Cross-origin requests of browsers, as vLLM answers them (Starlette's CORSMiddleware), once on every answer: on the
proxy's own, and on engines', whose own CORS headers are replaced. No I/O.

Without allowed origins, vLLM's default, nothing is done here, and engines' CORS headers pass.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from multidict import CIMultiDict

_METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY")
_HEADERS: Final = ("Accept", "Accept-Language", "Content-Language", "Content-Type")
_ASKED: Final = "Access-Control-Request-"
_VARY: Final = f"Origin, {_ASKED}Method, {_ASKED}Headers, {_ASKED}Private-Network"


class Preflight(NamedTuple):
    status: int
    text: str
    headers: dict[str, str]


class Cors:
    def __init__(
        self, *, origins: Sequence[str], methods: Sequence[str], headers: Sequence[str], credentials: bool
    ) -> None:
        self._origins = origins
        self._any_origin = "*" in origins
        self._methods = _METHODS if "*" in methods else tuple(methods)
        self._any_header = "*" in headers
        self._headers = tuple(sorted({*_HEADERS, *headers}))
        self._credentials = credentials

    def preflight(self, method: str, asked: Mapping[str, str]) -> Preflight | None:
        """The answer to a browser that asks what it may do; None if this is not such a request."""
        origin, wanted = asked.get("Origin"), asked.get(f"{_ASKED}Method")
        if not self._origins or method != "OPTIONS" or origin is None or wanted is None:
            return None
        failures = [] if self._allows(origin) else ["origin"]
        answer = {"Vary": _VARY, "Access-Control-Allow-Methods": ", ".join(self._methods)}
        answer |= {"Access-Control-Max-Age": "600"} | self._of(origin)
        if wanted not in self._methods:
            failures.append("method")
        names = asked.get(f"{_ASKED}Headers")
        if not self._any_header:
            answer["Access-Control-Allow-Headers"] = ", ".join(self._headers)
            known = {header.lower() for header in self._headers}
            if names is not None and not {name.strip().lower() for name in names.split(",")} <= known:
                failures.append("headers")
        elif names is not None:
            answer["Access-Control-Allow-Headers"] = names
        if f"{_ASKED}Private-Network" in asked:
            failures.append("private-network")
        if failures:
            return Preflight(400, "Disallowed CORS " + ", ".join(failures), answer)
        return Preflight(200, "OK", answer)

    def mark(self, origin: str | None, headers: CIMultiDict[str]) -> None:
        """Says in an answer's headers who may read it."""
        if not self._origins:
            return
        for name in [name for name in headers if name.lower().startswith("access-control-")]:
            headers.popall(name, None)
        vary = [name.strip() for line in headers.popall("Vary", ()) for name in line.split(",")]
        if "*" not in vary and "origin" not in [name.lower() for name in vary]:
            vary.append("Origin")
        headers["Vary"] = ", ".join(vary)
        if origin is not None:
            headers.update(self._of(origin))

    def _of(self, origin: str) -> dict[str, str]:
        said = {"Access-Control-Allow-Credentials": "true"} if self._credentials else {}
        if self._any_origin and not self._credentials:
            return said | {"Access-Control-Allow-Origin": "*"}
        return said | ({"Access-Control-Allow-Origin": origin} if self._allows(origin) else {})

    def _allows(self, origin: str) -> bool:
        return self._any_origin or origin in self._origins
