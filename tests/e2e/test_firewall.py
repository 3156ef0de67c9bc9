"""Hosts that reach the master and not each other: errors name the address and the cause, and repairs back off.

In network namespaces, in a process of its own (`tests.e2e.firewall`).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from demo.processes import Process
from tests.chaos.hosts import UNSHARE

TOOLS = ("unshare", "ip", "nsenter", "mount")


def run_apart(module: str, tmp_path: Path, deadline_s: float, *args: str) -> None:
    """Runs a program of this folder in namespaces of its own, to its "held"."""
    if not all(map(shutil.which, TOOLS)) or subprocess.run([*UNSHARE, "true"], check=False).returncode:
        pytest.skip("no namespaces here")
    root = Path(__file__).resolve().parents[2]
    env = os.environ | {"PYTHONPATH": f"{root}:{root / 'clients/python'}"}
    argv = [*UNSHARE, sys.executable, "-m", module, str(tmp_path / "cluster"), *args]
    run = Process(module, argv, log_dir=tmp_path, env=env)
    try:
        status = run.wait(deadline_s)
        assert status == 0, run.output()
        assert run.output().endswith("held\n")
    finally:
        run.stop()


@pytest.mark.timeout(180)
def test_what_a_firewall_keeps_apart_is_told_apart_from_what_is_lost(tmp_path: Path) -> None:
    run_apart("tests.e2e.firewall", tmp_path, 150)
