"""`larder status`: what the cluster is and how it fares, at one glance."""

import asyncio
import json
from dataclasses import asdict

import click

from larder.cli.common import Common, common_options
from larder.cli.showing import show_rows, show_size, state_of, status_json
from larder.masters import SURVEY_S, Seen, in_charge, survey, warnings
from larder.rpc import MasterClient
from larder.stats import Stats
from larder.v1 import master_pb2


@click.command()
@common_options
def status(common: Common) -> None:
    """The master, its nodes and what they hold."""
    reply, seen = asyncio.run(_status(common))
    for warning in warnings(seen):
        click.echo(f"larder: warning: {warning}", err=True)
    if common.is_json:
        masters = [asdict(each) for each in seen]
        click.echo(json.dumps(status_json(reply) | {"masters": masters, "warnings": warnings(seen)}))
        return
    click.echo(
        f"master of version {reply.version}, epoch {reply.epoch}: {reply.objects} objects of "
        f"{show_size(reply.object_bytes)}, {reply.writes_in_flight} writes in flight"
    )
    if reply.rest_left_ms:
        rested_s, left_s = reply.rested_ms / 1000, reply.rest_left_ms / 1000
        click.echo(
            f"what is free has rested for {rested_s:.1f} s and does for {left_s:.1f} s more: "
            "writes of before the master's start may still land there"
        )
    rows = []
    for node in reply.nodes:
        for part in node.segments:
            sizes = (part.live_bytes, part.reserved_bytes, part.quarantined_bytes, part.free_bytes)
            capacity, engine = show_size(part.segment.capacity_bytes), part.segment.engine_endpoint or "none"
            named = [node.node_id, node.zone or "none", state_of(node)]
            rows.append([*named, *map(show_size, sizes), capacity, str(part.copies), engine])
    names = ["node", "zone", "state", "live", "reserved", "quarantined", "free", "capacity", "copies", "engine"]
    show_rows(names, rows)


async def _status(common: Common) -> tuple[master_pb2.StatusReply, list[Seen]]:
    """What the master in charge says; where none is, the first that answers."""
    deadline, masters = common.deadline(), common.options().masters
    seen = await survey(masters, min(SURVEY_S, common.timeout / 2))
    chosen = in_charge(seen) or next((each for each in seen if not each.trouble), None)
    client = MasterClient([chosen.address] if chosen else masters, Stats())
    try:
        return await client.status(deadline=deadline), seen
    finally:
        await client.close()
