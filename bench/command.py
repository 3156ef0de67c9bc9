"""What the bench commands have in common: flags, progress messages, scratch folder."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.report import console

WORK_DIR = Path(".work")


def make_parser(prog: str, doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


class Say:
    """Prints progress, with the seconds elapsed. Can be passed to another process of this machine."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def __call__(self, what: str) -> None:
        console.print(f"[dim]{time.monotonic() - self._begun:5.0f} s  {what}[/]")


@contextmanager
def work_dir(prog: str) -> Iterator[Path]:
    """Removed at the end."""
    WORK_DIR.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix=f"{prog}-", dir=WORK_DIR) as made:
        yield Path(made)
