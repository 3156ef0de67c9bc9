"""How bytes get from here to each storage node: by shared memory, by the transfer engine, or not at all, and why.

A node is asked as a client asks it: its pool file is opened, and a few bytes are read through the engine, which takes
both of the engine's ports. Nothing is written.
"""

import asyncio
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from larder.addresses import is_loopback, split
from larder.diagnosis import why_unreached
from larder.doctor.finding import Finding, Part
from larder.doctor.network import resolve
from larder.engine_ports import Ports
from larder.host import host_id
from larder.memory import destination
from larder.places import segment_of
from larder.pool_file import HEADER_BYTES, PoolFileError, PoolHeader
from larder.transports import Move
from larder.transports.copiers import Copiers
from larder.transports.engine import EngineTransport
from larder.v1 import master_pb2, types_pb2

PART: Final = Part("bytes")
READ_S: Final = 3.0
READ_BYTES: Final = 64
NODES_MAX: Final = 64
ENGINE_PORTS: Final = Ports(15_000, 17_000)
"""Where the transfer engine takes its ports by default."""


async def check_nodes(
    nodes: Sequence[master_pb2.NodeStatus], ports: Ports | None, *, has_engine: bool
) -> list[Finding]:
    """Looks at NODES_MAX nodes at most, all at once. `ports`: the range that the settings here give to engines."""
    copiers = Copiers()
    transport = EngineTransport(copiers)
    try:
        segments = [part.segment for node in nodes[:NODES_MAX] for part in node.segments]
        found = await asyncio.gather(*[_check(each, ports, transport if has_engine else None) for each in segments])
    finally:
        await transport.close()
        copiers.close()
    left = len(nodes) - NODES_MAX
    return [*found, *([PART.skipped("more nodes", f"{left}, which are not looked at")] if left > 0 else [])]


async def _check(segment: types_pb2.Segment, ports: Ports | None, transport: EngineTransport | None) -> Finding:
    what = f"node {segment.node_id}"
    why_not = _why_no_shared_memory(segment)
    if not why_not:
        return await _by_shared_memory(what, segment)
    if not segment.engine_endpoint:
        said = f"has no transfer engine, and {why_not}"
        return PART.bad(what, said, remedy=_PIP, advice="on its host, and start it again")
    trouble = await _why_no_engine(segment, transport)
    is_here = segment.host_id == host_id()
    if not trouble:
        by_engine = f"by the engine at {segment.engine_endpoint}"
        if not is_here:
            return PART.ok(what, by_engine)
        advice = _share_advice(segment)
        return PART.warn(what, f"{by_engine}, though it is on this host: {why_not}", advice=advice)
    if is_here and "permission" in why_not:
        return PART.bad(what, f"{why_not}; {trouble}", advice=_share_advice(segment))
    return await _unreached(what, segment, ports, trouble)


async def _by_shared_memory(what: str, segment: types_pb2.Segment) -> Finding:
    if segment.host_id != host_id():
        said = "its pool is mapped here, but it says it is on another host: puts do not prefer it"
        return PART.warn(what, said, advice="give node and client the same /proc/sys/kernel/random/boot_id")
    if not segment.engine_endpoint:
        said = "by shared memory; it has no transfer engine, so clients on other hosts do not reach it"
        return PART.warn(what, said, remedy=_PIP, advice="on this host, and start the node again")
    return PART.ok(what, "by shared memory")


def _why_no_shared_memory(segment: types_pb2.Segment) -> str:
    """As the client's own mapping does it; empty where it is possible."""
    path = segment.shm_path
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return f"its pool {path} is not there from here"
    except PermissionError:
        return f"its pool {path} is not this user's: permission denied for uid {os.geteuid()}"
    except OSError as error:
        return f"its pool {path} cannot be opened: {error.strerror}"
    try:
        header = PoolHeader.unpack(os.pread(fd, HEADER_BYTES, 0))
        return "" if header.token == segment.shm_token else f"the pool {path} here is another node's"
    except (OSError, PoolFileError) as error:
        return f"its pool {path} cannot be used: {error}"
    finally:
        os.close(fd)


def _share_advice(segment: types_pb2.Segment) -> str:
    folder = Path(segment.shm_path).parent
    if os.access(segment.shm_path, os.F_OK):
        uid = os.stat(segment.shm_path).st_uid
        return f"run clients and node as the same user (the pool is uid {uid}'s; containers: --user {uid})"
    quoted = shlex.quote(str(folder))
    return f"let both see the same folder: for containers --volume {quoted}:{quoted}, or --ipc=host for /dev/shm"


async def _why_no_engine(segment: types_pb2.Segment, transport: EngineTransport | None) -> str:
    """Empty if a read through the engine succeeds."""
    try:
        host, _ = split(segment.engine_endpoint)
    except ValueError:
        host = ""
    trouble = await why_unreached(segment.engine_endpoint) if host else ""
    if trouble and not trouble.startswith("it accepts"):
        return trouble
    if transport is None:
        return "this side has no transfer engine (see above)"
    memory = destination(bytearray(READ_BYTES))
    move = Move(memory, 0, private=True)
    try:
        async with asyncio.timeout(READ_S + 1):
            faults = await transport.read(segment_of(segment), [move], time.monotonic() + READ_S)
    except TimeoutError:
        return trouble
    return trouble if any(faults) else ""


async def _unreached(what: str, segment: types_pb2.Segment, ports: Ports | None, trouble: str) -> Finding:
    what = f"{what} at {segment.engine_endpoint}"
    try:
        host, port = split(segment.engine_endpoint)
    except ValueError:
        return PART.bad(what, trouble, advice="does the metadata server answer? see the node's --metadata-server")
    ips = await resolve(host)
    if ips and all(map(is_loopback, ips)) and segment.host_id != host_id():
        said = f"{host} means {ips[0]} here, this host itself: the node tells clients an address that only it can use"
        return PART.bad(what, said, advice="start it with --advertise and its host's address")
    if not ips or "refused" in trouble:
        return PART.bad(what, trouble, advice="does it run, and is that its host's address? see its --advertise")
    if "timed out" in trouble or "firewall" in trouble:
        opened = next((each for each in (ports, ENGINE_PORTS) if each and each.first <= port <= each.last), None)
        remedy = f"iptables -I INPUT -p tcp --dport {f'{opened.first}:{opened.last}' if opened else port} -j ACCEPT"
        advice = "on the node's host, as root, or in its firewall"
        if opened is None:
            advice += f"; for all of the node's --engine-ports, of which {port} is one"
        return PART.bad(what, trouble, remedy=remedy, advice=advice)
    return PART.bad(what, trouble, advice="look at the node's log")


_PIP: Final = "pip install mooncake-transfer-engine-non-cuda"
