"""Asks the sources of --discover which engines they name: name servers, by DNS, and files. The core decides what of it
counts.

A name is looked up as this host's resolv.conf says, search domains and all; only the name server caches. Of an engine
with addresses of both families the IPv4 one is taken: as two engines it would get twice its share.
"""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final

import dns.exception
import dns.resolver
import yaml
from dns.rdatatype import RdataType
from larder.addresses import ip_of, join
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from services.proxy.core.discovery import Dns, File, Member, Reason, Unheard
from services.proxy.core.endpoint import canonical
from services.proxy.core.engine import Address, Role
from services.proxy.core.membership import ENGINES_MAX
from services.proxy.in_thread import InThread

LOOKUP_S: Final = 3.0
_HUNG_S: Final = 1.0  # after that it is the system that does not come back
FILE_BYTES_MAX: Final = 256 << 10

make_resolver = dns.resolver.Resolver  # a new one for each lookup: resolv.conf may change


class DnsSource:
    """A name's addresses, by which the engines there are called."""

    def __init__(self, source: Dns) -> None:
        self._source = source
        self._thread = InThread(self._look_up)  # dnspython's own coroutines swallow cancellations

    async def ask(self) -> frozenset[Member]:
        """Raises Unheard, within seconds."""
        try:
            return await self._thread.result(LOOKUP_S + _HUNG_S)
        except TimeoutError as error:
            raise Unheard(Reason.UNANSWERED, "looking it up does not return on this system") from error

    def _look_up(self) -> frozenset[Member]:
        try:
            found = self._found(_Lookup())
        except dns.resolver.NXDOMAIN as error:
            raise Unheard(Reason.EMPTY, "there is no such name") from error
        except dns.exception.Timeout as error:
            raise Unheard(Reason.UNANSWERED, f"no name server answered within {LOOKUP_S:g} s") from error
        except (dns.exception.DNSException, OSError) as error:
            raise Unheard(Reason.UNANSWERED, " ".join(str(error).split())) from error
        return frozenset((self._source.role, Address(join(host, port))) for host, port in found)

    def _found(self, lookup: "_Lookup") -> list[tuple[str, int]]:
        if self._source.port is not None:
            return [(host, self._source.port) for host in lookup.addresses(self._source.name)]
        targets = [(str(record.target), record.port) for record in lookup.records(self._source.name, RdataType.SRV)]
        if len(targets) > ENGINES_MAX:
            raise Unheard(Reason.TOO_MANY, f"it has over {ENGINES_MAX} SRV records")
        return [(host, port) for target, port in targets for host in lookup.addresses_if_any(target)]


class _Lookup:
    """All queries for one answer, within LOOKUP_S altogether."""

    def __init__(self) -> None:
        self._resolver = make_resolver()
        self._end = time.monotonic() + LOOKUP_S

    def records(self, name: str, kind: RdataType) -> Iterable[Any]:
        left_s = self._end - time.monotonic()
        if left_s <= 0:
            raise dns.exception.Timeout
        return self._resolver.resolve(name, kind, search=True, raise_on_no_answer=False, lifetime=left_s).rrset or ()

    def addresses(self, name: str) -> list[str]:
        records = self.records(name, RdataType.A) or self.records(name, RdataType.AAAA)
        return [address for record in records if _can_be_reached(address := str(record.address))]

    def addresses_if_any(self, name: str) -> list[str]:
        """SRV records may outlive the hosts they name."""
        try:
            return self.addresses(name)
        except dns.resolver.NXDOMAIN:
            return []


def _can_be_reached(address: str) -> bool:
    ip = ip_of(address)  # what name blockers answer is 0.0.0.0
    return ip is not None and not (ip.is_unspecified or ip.is_multicast)


class _Listed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    prefill: list[Annotated[str, AfterValidator(canonical)]] = []
    decode: list[Annotated[str, AfterValidator(canonical)]] = []


class FileSource:
    """A file, read afresh each time: one that is replaced, or behind links that are, is noticed whatever its mtime."""

    def __init__(self, source: File) -> None:
        self._path = Path(source.path)
        self._thread = InThread(self._read)
        self._seen: bytes | None = None
        self._members: frozenset[Member] | Unheard = frozenset()

    async def ask(self) -> frozenset[Member]:
        """Raises Unheard, within seconds."""
        try:
            return await self._thread.result(LOOKUP_S + _HUNG_S)
        except TimeoutError as error:
            raise Unheard(Reason.UNREADABLE, "its file system does not answer") from error

    def _read(self) -> frozenset[Member]:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block
            with open(descriptor, "rb") as file:
                content = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise Unheard(Reason.UNREADABLE, f"it cannot be read: {error.strerror}") from error
        if content != self._seen:
            self._seen, self._members = content, _members(content)
        if isinstance(self._members, Unheard):
            raise self._members
        return self._members


def _members(content: bytes) -> frozenset[Member] | Unheard:
    if len(content) > FILE_BYTES_MAX:
        return Unheard(Reason.INVALID, f"it is over {FILE_BYTES_MAX} bytes")
    try:
        listed = _Listed.model_validate(_parsed(content))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where, what = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
        return Unheard(Reason.INVALID, " ".join(f"{where}: {what}".split()).removeprefix(": "))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        return Unheard(Reason.INVALID, f"it is neither YAML nor JSON: {' '.join(str(error).split())}")
    return frozenset(
        (role, Address(address))
        for role, addresses in ((Role.PREFILL, listed.prefill), (Role.DECODE, listed.decode))
        for address in addresses
    )


def _parsed(content: bytes) -> Any:
    text = content.decode("utf-8")
    return json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text) or {}
