"""Runs the `larder` command as a user does."""

import os
import subprocess
import sys
from pathlib import Path


def larder(
    *argv: str | bytes | Path, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [Path(sys.prefix) / "bin" / "larder", *argv],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
    )
