"""Programs in namespaces of their own: networks, mounts and firewalls that nobody outside sees, and that end with them.

A program prints "held" at its end, where all was as it should be.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from demo.processes import Process

ROOT = Path(__file__).resolve().parents[1]
NAMESPACES = ("unshare", "--net", "--mount", "--map-root-user")
WITH_PIDS = (*NAMESPACES, "--pid", "--fork", "--mount-proc", "--kill-child")
"""Its processes end with it, too."""
_TOOLS = ("unshare", "ip", "nsenter", "mount")


def run_apart(
    module: str,
    tmp_path: Path,
    deadline_s: float,
    *args: str,
    namespaces: Sequence[str] = NAMESPACES,
    env: Mapping[str, str] = os.environ,
) -> None:
    """Runs a module of the tests to its "held"; its first argument is a folder that it makes itself."""
    if not all(map(shutil.which, _TOOLS)) or subprocess.run([*namespaces, "true"], check=False).returncode:
        pytest.skip("no namespaces here")
    argv = [*namespaces, sys.executable, "-m", module, str(tmp_path / "apart"), *args]
    env = {**env, "PYTHONPATH": f"{ROOT}:{ROOT / 'clients/python'}"}
    run = Process(module, argv, log_dir=tmp_path, env=env)
    try:
        status = run.wait(deadline_s)
        assert status == 0, run.output()
        assert run.output().endswith("held\n")
    finally:
        run.stop()
