"""Whether masters are reached, and why not: names, refused or dropped connections, ports that others have."""

import asyncio
import errno
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc
import grpc.aio

from larder.addresses import ip_of, is_loopback, join, split
from larder.channel import open_channel
from larder.diagnosis import why_unreached
from larder.doctor.finding import Finding, Part
from larder.doctor.listeners import listener
from larder.masters import Seen, in_charge, survey, warnings
from larder.v1 import master_pb2 as pb
from larder.v1 import master_pb2_grpc

PART: Final = Part("network")
SURVEY_S: Final = 2.5
RESOLVE_S: Final = 2.0
PORTS_TRIED: Final = 64
_REFUSED: Final = "connection refused"
_DROPPED: Final = "timed out"


@dataclass(frozen=True, slots=True)
class Reached:
    """What was found; `status` is None if no master answers. Times are of this host's wall clock, around the answer."""

    findings: list[Finding] = field(default_factory=list)
    status: pb.StatusReply | None = None
    asked_s: float = 0.0
    answered_s: float = 0.0
    master: str = ""


async def check_masters(masters: Sequence[str]) -> Reached:
    """What is wrong with these masters, and what the one in charge says."""
    seen = await survey(masters, SURVEY_S)
    findings = list(await asyncio.gather(*[_check_master(each, len(seen) > 1) for each in seen]))
    having = [each for each in seen if each.nodes]
    if len(having) > 1:
        together = f"larder node --master {','.join(masters)}"
        findings.append(
            PART.bad("several masters", warnings(seen)[0], advice=f"start every node with all of them: {together}")
        )
    chosen = in_charge(seen) or next((each for each in seen if not each.trouble), None)
    if chosen is None:
        return Reached(findings)
    return await _ask(chosen.address, findings)


async def _check_master(seen: Seen, has_others: bool) -> Finding:
    what = f"master {seen.address}"
    if not seen.trouble:
        nodes = f"{seen.nodes} storage nodes" if seen.nodes or not has_others else "no storage node: it stands by"
        return PART.ok(what, f"answers; {nodes}")
    host, port = split(seen.address)
    ips = await resolve(host)
    if not ips:
        advice = "correct --master or LARDER_MASTER, or make the name known (DNS, /etc/hosts)"
        return PART.bad(what, f"{host} is not the name of a host here", advice=advice)
    is_here = any(is_loopback(ip) or is_own(ip) for ip in ips)
    why = await why_unreached(seen.address)
    if why.startswith(_REFUSED):
        return _refused(what, host, port, ips, is_here)
    if _DROPPED in why:
        return _dropped(what, port, why)
    if not why.startswith("it accepts"):
        return PART.bad(what, why, advice="look at this host's routes and at the firewall of both hosts")
    return _mute(what, host, ips[0], port, seen.trouble, is_here)


def _refused(what: str, host: str, port: int, ips: Sequence[str], is_here: bool) -> Finding:
    if ip_of(host) is None and host != "localhost" and all(map(is_loopback, ips)):
        said = f"the name {host} means {ips[0]} here, this host itself by loopback, where no master listens"
        advice = f"give the master's address in place of the name, or correct {host} in /etc/hosts"
        return PART.bad(what, said, advice=advice)
    where = "" if is_here else "on that host"
    return PART.bad(
        what,
        "connection refused: no master listens there",
        remedy=f"larder master --port {port}{_listen(ips[0])}",
        advice=where or "leave it running, as a service or in another terminal",
    )


def _dropped(what: str, port: int, why: str) -> Finding:
    remedy = f"iptables -I INPUT -p tcp --dport {port} -j ACCEPT"
    return PART.bad(what, why, remedy=remedy, advice="on the master's host, as root, or open the port in its firewall")


def _mute(what: str, host: str, ip: str, port: int, trouble: str, is_here: bool) -> Finding:
    """Something takes the connection, and it is no master that answers."""
    found = listener(port) if is_here else None
    who = f"process {found.pid} ({found.name})" if found else "another program"
    if found and found.is_stopped:
        said = f"process {found.pid} ({found.name}) has the port and is stopped"
        return PART.bad(what, said, remedy=f"kill -CONT {found.pid}")
    if "Deadline" in trouble:
        said = f"{who} takes connections and answers nothing: a master that hangs, or no master"
        return PART.bad(what, said, advice="look at its log; a master that is killed loses no object")
    free = _free_port(ip, port) if is_here else 0
    said = f"{who} has the port and is no Larder master"
    start = f"larder master --port {free}{_listen(ip)} &"
    remedy = f"export LARDER_MASTER={join(host, free)}; {start}" if free else ""
    return PART.bad(what, said, remedy=remedy, advice="a port that is free here; or end that process")


def _listen(ip: str) -> str:
    return "" if is_loopback(ip) else f" --host {ip}"


def _free_port(ip: str, taken: int) -> int:
    """The next port that nobody listens on; 0 if none is found."""
    for port in range(taken + 1, min(taken + PORTS_TRIED, 65_536)):
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
            if probe.connect_ex((ip, port)) == errno.ECONNREFUSED:
                return port
    return 0


async def resolve(host: str) -> list[str]:
    if (ip := ip_of(host)) is not None:
        return [str(ip)]
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError):
        return []
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def is_own(ip: str) -> bool:
    """Whether that is an address of this host: it can be bound."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True


async def _ask(address: str, findings: list[Finding]) -> Reached:
    async with open_channel(address) as channel:
        stub = master_pb2_grpc.MasterStub(channel)
        asked_s = time.time()
        try:
            status = await stub.Status(pb.StatusRequest(), timeout=SURVEY_S)
        except grpc.aio.AioRpcError as error:
            said = f"it answered once and no more: {error.details() or error.code().name}"
            return Reached([*findings, PART.bad(f"master {address}", said)])
        return Reached(findings, status, asked_s, time.time(), address)
