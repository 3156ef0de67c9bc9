"""The eviction benchmark's judgement. (What it measures: unit/master/test_replay and …/test_eviction_core.)"""

import json
from pathlib import Path

import pytest

from bench.eviction import main, parse_capacities, target
from services.master.replay.traces import TraceError


@pytest.mark.parametrize("text", ["", "10,x"])
def test_capacities_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(TraceError, match="give"):
        parse_capacities(text)
    assert parse_capacities("3,10") == [3, 10]


def test_targets_are_those_of_the_issue() -> None:
    assert [target(5_000, 10.0, ours)[1] for ours in (13.0, 12.9)] == [True, False]
    assert [target(1_000, 10.0, ours)[1] for ours in (9.8, 9.7)] == [True, False]


def test_it_prints_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps({"hash_ids": [0, 1 + number % 5]}) + "\n" for number in range(1, 50)))
    monkeypatch.setattr("sys.argv", ["bench-eviction", str(path), "--capacities", "4,10"])
    main()
    assert "49 requests, 98 blocks" in (said := capsys.readouterr().out)
    assert "optimum" in said
    monkeypatch.setattr("sys.argv", ["bench-eviction", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="No such file"):
        main()
    path.write_text('{"hash_ids": [1]}\n[1]\n')
    monkeypatch.setattr("sys.argv", ["bench-eviction", str(path)])
    with pytest.raises(SystemExit, match="line 2"):
        main()
