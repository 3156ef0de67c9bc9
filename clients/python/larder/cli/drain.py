"""`larder drain`: takes a storage node out of service."""

import json
import time

import click

from larder.cli.common import INTERRUPTED, Common, Seconds, ask_master, fail, format_option, master_option
from larder.cli.draining import drained, goes_on
from larder.rpc import MasterClient


@click.command()
@click.argument("node")
@click.option("--cancel", is_flag=True, help="The node stays after all.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until the node is empty and ends.")
@click.option(
    "--timeout", "wait_s", type=Seconds(0), default=3600.0, show_default=True, metavar="SECONDS",
    help="To wait; the drain goes on.",
)  # fmt: skip
@master_option
@format_option
@click.make_pass_decorator(Common, ensure=True)
def drain(common: Common, node: str, cancel: bool, wait: bool, wait_s: float) -> None:
    """Moves everything off storage node NODE, whose process then ends. Nothing is lost, and readers notice nothing."""

    if not node.isascii():
        raise click.BadParameter(f"{node!a} is not a node's name")

    async def run(client: MasterClient) -> None:
        await client.drain(node, cancel=cancel, deadline=common.deadline())
        if wait and not cancel:
            await drained(client, node, time.monotonic() + wait_s)

    try:
        ask_master(common, run)
    except KeyboardInterrupt:
        fail("interrupted; " + ("it may have been called off" if cancel else goes_on(node)), status=INTERRUPTED)
    done = "stays" if cancel else "is drained, its process ends" if wait else "is being drained"
    click.echo(json.dumps({"node": node, "result": done}) if common.is_json else f"{node} {done}")
