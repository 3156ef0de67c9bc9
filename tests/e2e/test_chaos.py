"""One short round of `make chaos`, of a fixed seed, in a process of its own: its namespaces end with it.

The seed's faults are a full disk, a node killed, one stopped, a client killed and one cut off. A node that is cut off
is left to the long runs: how soon a client reaches it again is up to TCP's back-off, and at times nearly the bound.
"""

import os
import sys
from pathlib import Path

import pytest

from demo.processes import Process

SECONDS = 25
SEED = 20


@pytest.mark.timeout(240)
def test_a_round_of_chaos_breaks_no_rule(tmp_path: Path) -> None:
    flags = {"seconds": SECONDS, "rounds": 1, "seed": SEED, "work-dir": tmp_path / "chaos"}
    argv = ["-m", "tests.chaos", *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]
    root = Path(__file__).resolve().parents[2]
    env = os.environ | {"PYTHONPATH": f"{root}:{root / 'clients/python'}"}
    run = Process("chaos", [sys.executable, *argv], log_dir=tmp_path, env=env)
    try:
        status = run.wait(200)
        print(run.output())
        assert status == 0, run.output()
    finally:
        run.stop()
