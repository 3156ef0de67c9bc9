"""What `larder debug replay` does: shows the last steps of a recording and takes a core through all of them."""

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from services.master.core.check import check as check_invariants
from services.master.core.master import Master
from services.master.recorder import RecordingError, Step, kinds, read

LINE_LENGTH_MAX: Final = 300


def run(file: Path, last: int, *, check: bool) -> bool:
    """Whether the core comes through. Raises RecordingError and OSError."""
    origin, steps = read(file)
    if not steps:
        raise RecordingError(f"{file} has no steps")
    first, end = steps[0].number, steps[-1].number
    click.echo(f"a master of larder {origin.version}, epoch {origin.epoch}, {origin.written}: steps {first} to {end}\n")
    for step in steps[max(0, len(steps) - last) :]:
        _show(step, origin.began_at)
    click.echo(f"\nrecorded:\n{origin.failure}")
    if first > 1:
        raise RecordingError(f"steps 1 to {first - 1} are not in the recording: it cannot be replayed")
    core = Master(origin.config, epoch=origin.epoch, now=origin.began_at, salt=origin.salt)
    failure = _replay(core, steps, check=check)
    click.echo(f"replayed:\n{failure}" if failure else "replayed: the core does not fail")
    return not failure


def _replay(core: Master, steps: Sequence[Step], *, check: bool) -> str:
    """How it fails, and where; empty where it does not."""
    is_same = True
    for step in steps:
        try:
            effects = core.step(step.now, step.command)
            if check:
                check_invariants(core)
        except Exception:
            return f"step {step.number}: {traceback.format_exc()}"
        if is_same and step.effects not in (None, kinds(effects)):
            is_same = False
            click.echo(f"step {step.number} has other effects than were recorded: this is another version of the core")
    return ""


def _show(step: Step, began_at: int) -> None:
    said = str(step.command)
    said = said if len(said) <= LINE_LENGTH_MAX else f"{said[:LINE_LENGTH_MAX]}..."
    done = "failed" if step.effects is None else ", ".join(step.effects) or "nothing"
    click.echo(f"{step.number:>8}  {(step.now - began_at) / 1000:+.3f} s  {said} -> {done}")
