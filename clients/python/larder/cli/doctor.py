"""`larder doctor`: the report of larder.doctor, as a table or as JSON."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click

from larder.addresses import split
from larder.cli.common import FOUND_WRONG, Common, common_options, say_json
from larder.cli.showing import show_rows
from larder.cli.sizes import SizeArgument
from larder.doctor import POOL_DIR, Subject, examine
from larder.doctor.finding import Finding, Verdict


class AddressArgument(click.ParamType):  # type: ignore[type-arg]
    """HOST:PORT."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            split(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


@click.command()
@click.option(
    "--pool-dir", type=click.Path(path_type=Path), default=POOL_DIR, show_default=True, help="Where nodes have pools."
)
@click.option("--dram", type=SizeArgument(), metavar="SIZE", help="Would a pool of this size fit on this host?")
@click.option("--proxy", "proxies", type=AddressArgument(), multiple=True, metavar="HOST:PORT", help="A proxy, too.")
@click.option(
    "--engine-log",
    "logs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Log of a vLLM engine; of several, whether they share KV, and if not, why.",
)
@common_options
def doctor(common: Common, pool_dir: Path, dram: int | None, proxies: Sequence[str], logs: Sequence[Path]) -> None:
    """Looks for what is wrong, on this host and with the cluster as seen from it, and says how to mend it.

    Changes nothing. Exit status 3 if something is bad; warnings do not count.
    """
    found = asyncio.run(examine(Subject(common.master, common.options, pool_dir, dram, proxies, logs)))
    bad = any(each.verdict is Verdict.BAD for each in found)
    if common.is_json:
        say_json({"verdict": _worst(found), "findings": [each.as_dict() for each in found]})
    else:
        _show(found)
    if bad:
        raise click.exceptions.Exit(FOUND_WRONG)


def _worst(found: Sequence[Finding]) -> str:
    for verdict in (Verdict.BAD, Verdict.WARN):
        if any(each.verdict is verdict for each in found):
            return str(verdict)
    return str(Verdict.OK)


def _show(found: Sequence[Finding]) -> None:
    show_rows(["", "part", "looked at", "found"], [[_mark(e), e.part, e.looked_at, e.said] for e in found])
    mending = [each for each in found if each.verdict in (Verdict.WARN, Verdict.BAD)]
    for number, each in enumerate(mending, 1):
        click.echo(f"\n{number}. {each.looked_at}: {each.said}")
        if each.remedy:
            click.echo(f"   {each.remedy}")
        if each.advice:
            click.echo(f"   ({each.advice})" if each.remedy else f"   {each.advice}")
    counts = {verdict: sum(each.verdict is verdict for each in found) for verdict in Verdict}
    click.echo("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count))


def _mark(each: Finding) -> str:
    return {Verdict.OK: "ok", Verdict.WARN: "warn", Verdict.BAD: "BAD", Verdict.SKIPPED: "-"}[each.verdict]
