"""The references and the arguments of the eviction benchmark. (Larder's own side: unit/master/test_eviction_core.)"""

import json
from pathlib import Path

import pytest

from bench.eviction import BadTrace, Requests, larder, load, lru, main, optimum, parse_capacities, target


def all_(requests: Requests) -> Requests:
    return requests


def test_only_an_unbroken_run_from_the_first_block_is_served() -> None:
    requests = [[1, 2, 3], [9, 2, 3], [1, 2, 4]]
    assert [run(requests, 10, all_) for run in (lru, optimum, larder)] == [2, 2, 2]


def test_recency_takes_what_was_used_longest_ago() -> None:
    assert lru([[1], [2], [1], [3], [1], [2]], 2, all_) == 2


def test_the_optimum_keeps_what_is_used_next() -> None:
    loop = [[1], [2], [3]] * 4
    assert lru(loop, 2, all_) == 0
    assert optimum(loop, 2, all_) == 5, "by hand: one of two, then every other time two"


def test_an_optimum_is_never_below_the_others() -> None:
    requests = [[number % 7, 100 + number % 3, 200 + number] for number in range(200)]
    best = optimum(requests, 12, all_)
    assert best >= lru(requests, 12, all_)
    assert best >= larder(requests, 12, all_)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no request"),
        ('{"hash_ids": [1, 2]}\n[1]\n', "line 2"),
        ('{"hash_ids": ["a"]}\n', "line 1"),
        ('{"hash_ids": [-1]}\n', "line 1"),
        ("x\n", "line 1"),
    ],
)
def test_what_is_no_trace_is_refused_by_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(BadTrace, match=said):
        load(path)


@pytest.mark.parametrize("text", ["", "10,x", "2,10"])
def test_capacities_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(BadTrace, match="give"):
        parse_capacities(text, [[1, 2, 3]])
    assert parse_capacities("3,10", [[1, 2, 3]]) == [3, 10]


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
