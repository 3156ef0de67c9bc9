"""`make bench` and `make bench-proxy` in little: every mover moves, every subject answers, and the figures come out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.metadata import FIRST, OPS
from bench.moving import LIMIT_OF
from bench.proxy import QUICK
from bench.proxy_subjects import DEMO, DIRECT, LARDER_PULL, LARDER_STORE, SGLANG_ROUTER, VLLM_ROUTER

ROOT = Path(__file__).resolve().parents[2]


def quick(module: str, tmp_path: Path, *, timeout_s: float) -> Any:
    """The figures of a quick run."""
    figures = tmp_path / "figures.json"
    argv = [sys.executable, "-m", module, "--quick", "--json", figures]
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s)
    assert ran.returncode == 0, ran.stderr
    return json.loads(figures.read_text())


@pytest.mark.timeout(180)
def test_a_quick_run_measures_everything(tmp_path: Path) -> None:
    found = quick("bench.run", tmp_path, timeout_s=170)
    movers = {entry["mover"] for entry in found["bytes"]}
    assert movers == {*LIMIT_OF, *LIMIT_OF.values(), "loopback TCP"}
    assert len(found["bytes"]) == len(movers) * 2 * 2  # sizes, directions
    assert all(entry["gbps"] > 0 and entry["p50_us"] > 0 for entry in found["bytes"])
    for subject in ("core", "gRPC"):
        ops = [entry["op"] for entry in found["master"] if entry["subject"] == subject]
        assert sorted(ops) == sorted(2 * [op + which for op in OPS for which in ("", FIRST)])
    assert all(entry["p50_s"] > 0 for entry in found["master"])
    assert found["targets"]


@pytest.mark.timeout(120)
def test_a_quick_run_of_the_proxies_measures_everything_that_is_installed(tmp_path: Path) -> None:
    found = quick("bench.proxy", tmp_path, timeout_s=110)
    measured = {entry["subject"] for entry in found["proxies"]}
    assert measured >= {DIRECT, LARDER_STORE, LARDER_PULL, DEMO}
    assert measured | set(found["missing"]) == {DIRECT, LARDER_STORE, LARDER_PULL, DEMO, VLLM_ROUTER, SGLANG_ROUTER}
    assert len(found["proxies"]) == len(measured) * len(QUICK.cells())
    for entry in found["proxies"]:
        assert len(entry["p50_s"]) == QUICK.rounds
        assert all(0 < p50 <= p99 for p50, p99 in zip(entry["p50_s"], entry["p99_s"], strict=True))
        assert all(per_s > 0 for per_s in entry["per_s"])
        assert all(cpu_s > 0 for cpu_s in entry["cpu_s"]) == (entry["subject"] != DIRECT)
    assert found["targets"]
