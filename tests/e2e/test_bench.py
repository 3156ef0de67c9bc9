"""`make bench` in little: every mover moves, every subject answers, and the figures come out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.metadata import OPS
from bench.moving import LIMIT_OF

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(180)
def test_a_quick_run_measures_everything(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    argv = [sys.executable, "-m", "bench.run", "--quick", "--json", figures]
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=170)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(figures.read_text())
    movers = {entry["mover"] for entry in found["bytes"]}
    assert movers == {*LIMIT_OF, *LIMIT_OF.values(), "loopback TCP"}
    assert len(found["bytes"]) == len(movers) * 2 * 2  # sizes, directions
    assert all(entry["gbps"] > 0 and entry["p50_us"] > 0 for entry in found["bytes"])
    for subject in ("core", "gRPC"):
        assert len([entry for entry in found["master"] if entry["subject"] == subject]) == 2 * len(OPS)
    assert all(entry["p50_s"] > 0 for entry in found["master"])
    assert found["targets"]
