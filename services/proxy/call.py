"""One request of a client, read and understood: what `intake` makes, and `exchange` carries out."""

from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web
from multidict import CIMultiDict

from services.proxy.core.engine import Address
from services.proxy.core.requests import Fields
from services.proxy.core.scheduling import Ask
from services.proxy.story import Story


@dataclass(slots=True)
class Call:
    request: web.Request
    story: Story
    body: bytes
    headers: CIMultiDict[str]
    lines: bytes  # the headers, as sent
    repeatable: bool  # a second engine may be asked even if a first one may have run it
    asked: Fields | None = None  # None: passed on untouched
    ask: Ask = field(default_factory=Ask)
    streamed: bool = False
    follows: str | None = None  # the id of the response that it is about
    made: Callable[[bytes, Address], None] | None = None  # is told how an answer begins, and whose it is
