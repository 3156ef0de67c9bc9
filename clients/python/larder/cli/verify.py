"""`larder verify`: reads every copy there is, reports the bad ones and has them made again."""

import time
from dataclasses import dataclass
from typing import Any, Final

import click

from larder.cli.checking import Checker, Outcome, Read, Tally
from larder.cli.common import FOUND_WRONG, Common, KeyArgument, Seconds, ask_master, common_options, say_json
from larder.cli.showing import Progress, show_argument, show_size
from larder.cli.sizes import SizeArgument
from larder.mover import Mover
from larder.places import Fault
from larder.rpc import MasterClient
from larder.stats import Stats
from larder.words import counted

EXPLAIN_S: Final = 2.0


@dataclass
class _Report:
    tally: Tally
    outcome: Outcome
    seconds: float
    reasons: list[str]

    def json(self) -> dict[str, Any]:
        tally, outcome = self.tally, self.outcome
        return {
            "kind": "summary",
            "ok": tally.is_good,
            "objects": tally.objects,
            "copies": tally.copies,
            "bytes": tally.read_bytes,
            "seconds": round(self.seconds, 3),
            "corrupt": tally.corrupt,
            "unreachable": tally.unreachable,
            "silent": tally.silent,
            "without_checksum": tally.unchecked,
            "vanished": tally.vanished,
            "repaired_objects": outcome.repaired,
            "lost_objects": outcome.lost,
            "unrepaired_objects": outcome.pending,
        }

    def lines(self) -> list[str]:
        tally, outcome = self.tally, self.outcome
        amount = f"{counted(tally.copies, 'copy', 'copies')} ({show_size(tally.read_bytes)})"
        said = [f"{counted(tally.objects, 'object')}, {amount} read in {self.seconds:.1f} s"]
        if tally.unchecked:
            said.append(f"{counted(tally.unchecked, 'copy', 'copies')} of these without a checksum to compare with")
        if tally.corrupt:
            left = f", {outcome.pending} not repaired yet" if outcome.pending else ""
            bad = counted(tally.corrupt, "bad copy", "bad copies")
            said.append(f"{bad} dropped: {counted(outcome.repaired, 'object')} repaired, {outcome.lost} lost{left}")
        if tally.unreachable:
            said.append(f"{counted(tally.unreachable, 'copy', 'copies')} could not be read from here")
        if tally.silent:
            said.append(f"{counted(tally.silent, 'copy', 'copies')} on nodes that do not answer: not read")
        return said + (["everything is as it was put"] if tally.is_good else [])


@click.command(short_help="Reads every copy, and has bad ones repaired.")
@click.argument("prefix", type=KeyArgument(), default="")
@click.option("--rate", type=SizeArgument(), metavar="SIZE", help="To read at most so much a second, such as 100MB.")
@click.option(
    "--wait", "wait_s", type=Seconds(0), default=30.0, show_default=True, metavar="SECONDS",
    help="For bad copies to be made again, at the end.",
)  # fmt: skip
@common_options
def verify(common: Common, prefix: bytes, rate: int | None, wait_s: float) -> None:
    """Reads every copy of every object, or of those whose keys begin with PREFIX, and compares it with its checksum.

    A bad copy is named and dropped, and made again from a good one. These reads do not count as uses: nothing is
    evicted later because of them, and hit rates stay as they are. Exit status 3: some copy was bad, or could not be
    read. With --format json, one line per bad copy, and one at the end.
    """

    def found(read: Read, fault: Fault) -> None:
        shown, node = show_argument(read.facts.key), read.copy.segment.node_id
        if common.is_json:
            what = "corrupt" if fault is Fault.CORRUPT else "unreachable"
            say_json({"kind": what, "key": shown, "slice": read.number, "node": node, "offset": read.copy.offset})
            return
        what = "has other bytes than were put" if fault is Fault.CORRUPT else "cannot be read"
        is_last = fault is Fault.CORRUPT and len(read.facts.slices[read.number].copies) == 1
        lost = "; there was no other: the object is lost" if is_last else ""
        click.echo(f"{shown}: the copy of slice {read.number} on {node} {what}{lost}")

    async def run(client: MasterClient) -> _Report:
        begun = time.monotonic()
        status = await client.status(deadline=common.deadline())
        options, stats = common.options(), Stats()
        if not prefix:
            progress.total = sum(part.live_bytes for node in status.nodes for part in node.segments)
        mover = Mover(options.transports, stats, options.zone)
        try:
            checker = Checker(client, mover, rate=rate, found=found, moved=progress.advance)
            with progress:
                tally = await checker.run(prefix)
                seconds = time.monotonic() - begun
                outcome = await checker.outcome(wait_s)
            unreached = {index: [segment] for index, segment in enumerate(tally.unreached.values())}
            reasons = await mover.explain(unreached, time.monotonic() + EXPLAIN_S)
        finally:
            await mover.close()
        return _Report(tally, outcome, seconds, list(reasons.values()))

    progress = Progress("reading")
    report = ask_master(common, run)
    for reason in report.reasons:
        click.echo(f"larder: {reason}", err=True)
    if common.is_json:
        say_json(report.json())
    else:
        click.echo("\n".join(report.lines()))
    if not report.tally.is_good:
        raise click.exceptions.Exit(FOUND_WRONG)
