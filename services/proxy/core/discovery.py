"""Which engines --discover finds: what its sources are, and how much of what they say counts. Decides; asks nobody.

An engine joins with the first answer that names it. It leaves when ABSENCES answers in a row do not, so that a partial
answer, or half a file, removes none. Nor does the lack of an answer, or an answer without engines.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from services.proxy.core.endpoint import BadPort, endpoint_of
from services.proxy.core.engine import Address, Role
from services.proxy.core.membership import ENGINES_MAX, Found

ABSENCES: Final = 2
SAY_EVERY_S: Final = 60.0

Member = tuple[Role, Address]


class Reason(StrEnum):
    """Why an answer was not believed, or why there was none."""

    UNANSWERED = "unanswered"  # by any name server in time
    UNREADABLE = "unreadable"  # the file
    INVALID = "invalid"
    EMPTY = "empty"
    TOO_MANY = "too_many"


class Unheard(Exception):
    """What a source names stays as it was. str() says why."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Dns:
    """All addresses of a name; without a port, its SRV records, which tell the port."""

    role: Role
    name: str
    port: int | None


@dataclass(frozen=True, slots=True)
class File:
    path: str


def source_of(text: str) -> Dns | File:
    """As --discover takes it. Raises ValueError, which says what is wrong."""
    role, separator, url = text.partition("=") if "=" in text.partition("://")[0] else ("", "", text)
    scheme, _, rest = url.partition("://")
    if scheme == "file" and not separator:
        if not rest.startswith("/"):
            raise ValueError(f"{text!r} has no absolute path: write file:///PATH")
        return File(rest)
    if scheme != "dns":
        raise ValueError(f"{text!r} is not prefill=dns://NAME:PORT, decode=dns://NAME:PORT or file:///PATH")
    if role not in list(Role):
        raise ValueError(f"{text!r} does not say which engines these are: write prefill={url} or decode={url}")
    if ":" not in rest and rest.startswith("_"):
        return Dns(Role(role), rest, None)
    try:
        endpoint = endpoint_of(rest)
    except BadPort as error:
        raise ValueError(f"{text!r}: a port is between 1 and 65535") from error
    except ValueError as error:
        raise ValueError(f"{text!r} is not dns://NAME:PORT, nor dns://_SERVICE._tcp.NAME for SRV records") from error
    if endpoint.is_tls or endpoint.base:
        raise ValueError(f"{text!r}: an engine found by its address speaks plain HTTP; a file may list https engines")
    return Dns(Role(role), endpoint.name, endpoint.port)


@dataclass(slots=True)
class _Source:
    roles: frozenset[Role]  # that it may name engines of
    never_empty: Role
    members: dict[Member, int] = field(default_factory=dict)  # -> in how many answers in a row each was missing
    is_known: bool = False  # it answered at least once
    trouble: Reason | None = None
    said_at: float | None = None


class Tally:
    """Inherited: what a predecessor found. It holds for a role until all sources of that role have answered."""

    def __init__(self, sources: Mapping[str, Dns | File], inherited: Found) -> None:
        self._sources = {
            text: _Source(frozenset({source.role}), source.role)
            if isinstance(source, Dns)
            else _Source(frozenset(Role), Role.DECODE)
            for text, source in sources.items()
        }
        self._inherited = inherited

    @property
    def is_complete(self) -> bool:
        return all(source.is_known for source in self._sources.values())

    @property
    def found(self) -> Found:
        return {role: tuple(dict.fromkeys(self._of(role))) for role in Role}

    def _of(self, role: Role) -> Iterator[Address]:
        for source in self._sources.values():
            yield from (address for of, address in source.members if of is role)
        if any(role in source.roles and not source.is_known for source in self._sources.values()):
            yield from self._inherited.get(role, ())

    def heard(self, source: str, named: Iterable[Member]) -> None:
        """Takes up an answer; raises Unheard, and changes nothing, if it is not credible."""
        of, named = self._sources[source], frozenset(named)
        if not named:
            raise Unheard(Reason.EMPTY, "it names no engine")
        roles = {role for role, _ in of.members}
        if of.never_empty in roles and not any(role is of.never_empty for role, _ in named):
            raise Unheard(Reason.EMPTY, f"it names no {of.never_empty.value} engine any more")
        kept = {
            member: 0 if member in named else missing + 1
            for member, missing in of.members.items()
            if member in named or missing + 1 < ABSENCES
        }
        members = kept | dict.fromkeys(sorted(named - of.members.keys()), 0)
        others = {member for each in self._sources.values() if each is not of for member in each.members}
        for role in Role:
            if sum(each is role for each, _ in members.keys() | others) > ENGINES_MAX:
                raise Unheard(Reason.TOO_MANY, f"with it there would be over {ENGINES_MAX} {role.value} engines")
        of.members, of.is_known = members, True

    def is_news(self, source: str, trouble: Reason | None, now: float) -> bool:
        """Whether to report what became of the source's last answer: if that changed, and not too often."""
        of = self._sources[source]
        if trouble is of.trouble or (of.said_at is not None and now - of.said_at < SAY_EVERY_S):
            return False
        of.trouble, of.said_at = trouble, now
        return True


def changes(before: Found, after: Found) -> Sequence[tuple[Role, str, tuple[Address, ...]]]:
    """(role, "joined" or "left", who), for each that has any."""
    told = []
    for role in Role:
        was, now = before.get(role, ()), after.get(role, ())
        told.append((role, "joined", tuple(each for each in now if each not in frozenset(was))))
        told.append((role, "left", tuple(each for each in was if each not in frozenset(now))))
    return [each for each in told if each[2]]
