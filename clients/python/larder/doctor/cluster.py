"""What the master says about the cluster: who is there, what rests, what is full, which versions, what time it is."""

from collections.abc import Iterator
from typing import Final

from larder.doctor.finding import Finding, Part
from larder.doctor.listeners import owner_of
from larder.doctor.network import Reached
from larder.host import host_id
from larder.v1 import master_pb2 as pb
from larder.words import counted

PART: Final = Part("cluster")
SKEW_S_MAX: Final = 2.0
PINNED_SHARE: Final = 0.9
HELD_SHARE: Final = 0.25
"""Of a pool, in quarantine: this much comes not from a few clients that died, but from clients that are stopped."""


def check_cluster(reached: Reached, start_node: str) -> list[Finding]:
    """`start_node`: the command that starts a node as the caller would."""
    status = reached.status
    if status is None:
        return []
    start_node += f" --master {reached.master}"
    found = [*_nodes(reached.master, status, start_node), *_space(status, start_node)]
    found += [*_rest(status), *_clock(reached, status)]
    nodes, objects = counted(len(status.nodes), "node"), counted(status.objects, "object")
    return found or [PART.ok("nodes and room", f"{nodes}, {objects} of {status.object_bytes} bytes")]


def _nodes(master: str, status: pb.StatusReply, start_node: str) -> Iterator[Finding]:
    if not status.nodes:
        said = "no storage node is attached: nothing can be stored"
        yield PART.bad("nodes", said, remedy=start_node, advice="on each host that has memory")
    for node in status.nodes:
        if node.state == "suspect":
            yield _suspect(node)
        if node.draining:
            left = f"{counted(node.drain_objects, 'object')} left there"
            if node.drain_without_room:
                left += f", {node.drain_without_room} find no room elsewhere: start another node, or"
            remedy = f"larder --master {master} drain {node.node_id} --cancel"
            advice = "if it is to stay; it ends when it is empty"
            yield PART.warn(f"node {node.node_id}", f"is being drained: {left}", remedy=remedy, advice=advice)


def _suspect(node: pb.NodeStatus) -> Finding:
    what, host = f"node {node.node_id}", node.host_name or "its host"
    said = "the master does not hear from it: what lies there cannot be read"
    for part in node.segments:
        owner = owner_of(part.segment.shm_path) if part.segment.host_id == host_id() else None
        if owner and owner.is_stopped:
            return PART.bad(what, f"{said}; process {owner.pid} is stopped", remedy=f"kill -CONT {owner.pid}")
        if owner:
            return PART.bad(what, f"{said}; process {owner.pid} runs", advice="look at its log")
    return PART.bad(what, said, advice=f"on {host}: does it run, does it reach the master, is the host up?")


def _space(status: pb.StatusReply, start_node: str) -> Iterator[Finding]:
    parts = [part for node in status.nodes for part in node.segments]
    capacity = sum(part.segment.capacity_bytes for part in parts)
    if not capacity:
        return
    held = sum(part.quarantined_bytes for part in parts)
    if held > HELD_SHARE * capacity:
        said = f"{held} of {capacity} bytes are out of use until writes that broke off can no longer land"
        yield PART.warn("room", said, advice="look for clients that are stopped or hang: larder top")
    pinned, live = sum(part.pinned_bytes for part in parts), sum(part.live_bytes for part in parts)
    if live > PINNED_SHARE * capacity and pinned > PINNED_SHARE * live:
        said = f"{pinned} of {capacity} bytes are pinned and never evicted: puts find no room"
        yield PART.bad("room", said, remedy=start_node, advice="more room, or remove pinned objects")


def _rest(status: pb.StatusReply) -> Iterator[Finding]:
    if status.rest_left_ms:
        left_s = -(-status.rest_left_ms // 1000)
        said = f"the master began {status.rested_ms // 1000} s ago: free room cannot be used for {left_s} s more"
        yield PART.warn("room", said, remedy=f"sleep {left_s}", advice="it passes; gets are served meanwhile")


def _clock(reached: Reached, status: pb.StatusReply) -> Iterator[Finding]:
    if not status.wall_ms:
        return
    theirs_s = status.wall_ms / 1000
    skew_s = max(reached.asked_s - theirs_s, theirs_s - reached.answered_s, 0.0)
    if skew_s > SKEW_S_MAX:
        ahead = "ahead of" if theirs_s > reached.answered_s else "behind"
        said = f"the master's clock is {skew_s:.1f} s {ahead} this host's: logs do not fit together"
        yield PART.warn("wall clock", said, remedy="timedatectl set-ntp true", advice="on the host that is wrong")
