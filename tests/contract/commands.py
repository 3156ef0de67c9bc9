"""Runs the `larder` command: as a user does, or in this process, which starts none and so takes a tenth of the time."""

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner
from larder.cli.app import cli

TOOL = Path(sys.prefix) / "bin" / "larder"
Done = subprocess.CompletedProcess[bytes]


def larder(*argv: str | bytes | Path, stdin: bytes = b"", env: dict[str, str] | None = None) -> Done:
    """As the entry point calls it, in this process; what it does not catch is raised."""
    args = [os.fsdecode(each) for each in argv]
    env = {"COLUMNS": "200", **(env or {})}
    ended = CliRunner().invoke(cli, args, input=stdin, env=env, prog_name="larder", catch_exceptions=False)
    return Done(args, ended.exit_code, ended.stdout_bytes, ended.stderr_bytes)


def run_larder(*argv: str | bytes | Path, stdin: bytes = b"", env: dict[str, str] | None = None) -> Done:
    """As a process."""
    return subprocess.run(
        [TOOL, *argv],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
    )
