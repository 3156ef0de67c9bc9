"""`larder status`: the cluster and how it fares, at a glance."""

import asyncio
from dataclasses import asdict

import click

from larder.cli.common import Common, common_options, say_json
from larder.cli.showing import show_rows, show_share, show_size, show_span, state_of, status_json
from larder.masters import SURVEY_S, Seen, in_charge, survey, warnings
from larder.rpc import MasterClient
from larder.stats import Stats
from larder.v1 import master_pb2
from larder.words import counted


@click.command()
@common_options
def status(common: Common) -> None:
    """The master, its nodes, what they hold and how the cluster fares."""
    reply, seen = asyncio.run(ask_status(common))
    for warning in warnings(seen):
        click.echo(f"larder: warning: {warning}", err=True)
    if common.is_json:
        masters = [asdict(each) for each in seen]
        say_json(status_json(reply) | {"masters": masters, "warnings": warnings(seen)})
        return
    click.echo("\n".join(_lines(reply)))
    rows = []
    for node in reply.nodes:
        for part in node.segments:
            capacity = part.segment.capacity_bytes
            sizes = (part.live_bytes, part.reserved_bytes, part.quarantined_bytes, part.free_bytes, capacity)
            named = [node.node_id, node.version or "?", node.zone or "none", state_of(node)]
            fill = show_share(capacity - part.free_bytes, capacity)
            engine = part.segment.engine_endpoint or "none"
            rows.append([*named, fill, *map(show_size, sizes), f"{part.copies:,}", engine])
    names = ["node", "version", "zone", "state", "fill", "live", "reserved", "quarantined", "free", "capacity"]
    show_rows([*names, "copies", "engine"], rows)


async def ask_status(common: Common) -> tuple[master_pb2.StatusReply, list[Seen]]:
    """What the master in charge says; if none is, the first that answers."""
    deadline, masters = common.deadline(), common.options().masters
    seen = await survey(masters, min(SURVEY_S, common.timeout / 2))
    chosen = in_charge(seen) or next((each for each in seen if not each.trouble), None)
    async with MasterClient([chosen.address] if chosen else masters, Stats()) as client:
        return await client.status(deadline=deadline), seen


def _lines(reply: master_pb2.StatusReply) -> list[str]:
    counts, parts = reply.counts, [part for node in reply.nodes for part in node.segments]
    capacity = sum(part.segment.capacity_bytes for part in parts)
    used = capacity - sum(part.free_bytes for part in parts)
    said = [
        f"master of version {reply.version}, epoch {reply.epoch}, up for {show_span(reply.up_ms / 1000)}: "
        f"{counted(reply.objects, 'object')} of {show_size(reply.object_bytes)}, "
        f"{counted(reply.writes_in_flight, 'write')} in flight",
        f"pools: {show_share(used, capacity)} of {show_size(capacity)} used on {counted(reply.attached, 'node')} "
        f"of {len(reply.nodes)}",
        f"since its start: match found {show_share(counts.match_hit_keys, counts.match_keys)} of "
        f"{counted(counts.match_keys, 'key')}, lookup {show_share(counts.lookup_hit_keys, counts.lookup_keys)} of "
        f"{counted(counts.lookup_keys, 'key')}; {counted(counts.put_objects, 'object')} put, "
        f"{counts.evicted_objects:,} evicted, {counts.lost_objects:,} lost",
    ]
    if reply.objects_below_target or reply.repairs_pending or counts.repaired_copies or counts.corrupt_copies:
        said.append(
            f"repair: {counted(reply.objects_below_target, 'object')} below target lack "
            f"{counted(reply.copies_missing, 'copy', 'copies')}, {reply.repairs_pending:,} in work; since the start "
            f"{counts.repaired_copies:,} made again, {counts.failed_repairs:,} failed, {counts.corrupt_copies:,} bad"
        )
    else:
        said.append("repair: every object has its copies")
    if reply.waiting_puts:
        said.append(f"{counted(reply.waiting_puts, 'put')} waiting for room")
    if reply.rest_left_ms:
        rested_s, left_s = reply.rested_ms / 1000, reply.rest_left_ms / 1000
        said.append(
            f"what is free has rested for {rested_s:.1f} s and does for {left_s:.1f} s more: "
            "writes of before the master's start may still land there"
        )
    return said
