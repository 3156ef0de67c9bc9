"""`larder trace replay`: what traces say, the references by hand, and what is shown."""

import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from larder.cli.common import Common

from services.master.replay.command import trace as command
from services.master.replay.figures import Figures, check_capacities, default_capacities, replay
from services.master.replay.plots import chart
from services.master.replay.policies import Blocks
from services.master.replay.traces import BLOCK_TOKENS, TraceError, load


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def shares(tmp_path: Path, requests: Sequence[Blocks], capacity: int) -> list[int]:
    """Blocks served by LRU, Larder and the optimum."""
    trace = load(write(tmp_path / "trace.jsonl", *({"hash_ids": blocks} for blocks in requests)))
    (point,) = replay(trace, [capacity]).points
    return [round(point.shares[name] * len(trace.uses)) for name in ("LRU", "Larder", "optimum")]


def larder(*argv: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(command, ["replay", *map(str, argv)], obj=Common())
    return done.exit_code, done.stdout, done.stderr


# ---- the references ------------------------------------------------------------------------------


def test_only_an_unbroken_run_from_the_first_block_is_served(tmp_path: Path) -> None:
    assert shares(tmp_path, [[1, 2, 3], [9, 2, 3], [1, 2, 4]], 10) == [2, 2, 2]


def test_recency_takes_what_was_used_longest_ago(tmp_path: Path) -> None:
    assert shares(tmp_path, [[1], [2], [1], [3], [1], [2]], 2)[0] == 2


def test_the_optimum_keeps_what_is_used_next(tmp_path: Path) -> None:
    lru, _, optimum = shares(tmp_path, [[1], [2], [3]] * 4, 2)
    assert (lru, optimum) == (0, 5), "by hand: one of two, then every other time two"


def test_an_optimum_is_never_below_the_others(tmp_path: Path) -> None:
    lru, larder_, best = shares(tmp_path, [[n % 7, 100 + n % 3, 200 + n] for n in range(200)], 12)
    assert best >= max(lru, larder_) > 0


# ---- traces --------------------------------------------------------------------------------------


def test_a_published_trace_says_how_long_its_blocks_are(tmp_path: Path) -> None:
    first = {"timestamp": 0, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]}
    second = {"timestamp": 27, "input_length": 1536, "output_length": 9, "hash_ids": [0, 3, 4]}
    trace = load(write(tmp_path / "trace.jsonl", first, second))
    assert (trace.requests, list(trace.uses), trace.distinct, trace.block_tokens) == (2, [0, 1, 2, 0, 3, 4], 5, 512)


def test_requests_as_they_are_sent_are_cut_into_blocks_that_their_beginnings_share(tmp_path: Path) -> None:
    ids = list(range(3 * BLOCK_TOKENS))
    text = "a word " * 1000
    chat = [{"role": "system", "content": text}, {"role": "user", "content": "hello"}]
    trace = load(
        write(
            tmp_path / "batch.jsonl",
            {"prompt": ids},
            {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": [*ids[:-1], 7]}},
            {"prompt": text},
            {"prompt": text + "and more" * 200},
            {"messages": chat},
            {"messages": [*chat, {"role": "assistant", "content": [{"type": "text", "text": "x" * 2000}]}]},
        )
    )
    one, other, short, long, chat_, answered = trace
    assert (len(one), one[:2], one[2] == other[2]) == (3, other[:2], False)
    assert short == long[: len(short)]
    assert len(long) > len(short) == len(text) // 1024
    assert answered[: len(chat_)] == chat_
    assert trace.block_tokens == BLOCK_TOKENS


def test_a_compressed_trace_is_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "trace.jsonl.gz", "wt") as file:
        file.write('{"hash_ids": [1, 2]}\n')
    assert load(tmp_path / "trace.jsonl.gz").distinct == 2


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("x", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not a request"),
        ("{}", "not a request"),
        ('{"hash_ids": ["a"]}', "whole numbers"),
        ('{"hash_ids": [-1]}', "whole numbers"),
        ('{"hash_ids": [1], "input_length": -1}', "input_length"),
        ('{"body": 1}', "its body"),
        ('{"prompt": {}}', "neither text nor token ids"),
        ('{"prompt": [1.5]}', "token ids"),
        ('{"messages": ["hi"]}', "no list of messages"),
    ],
)
def test_bad_lines_are_named_by_number_and_left_out(tmp_path: Path, line: str, why: str) -> None:
    path = write(tmp_path / "trace.jsonl", {"hash_ids": [1]}, "", line, {"hash_ids": [1]})
    status, out, err = larder(path)
    assert (status, "2 requests" in out) == (3, True)
    assert f"larder: {path}, line 3: " in err
    assert why in err
    with pytest.raises(TraceError, match="no request in it; line 1"):
        load(write(tmp_path / "bad.jsonl", line))


# ---- what is shown -------------------------------------------------------------------------------


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    requests = ({"input_length": 1024, "hash_ids": [0, 1 + number % 9]} for number in range(90))
    return write(tmp_path / "loop.jsonl", *requests)


def test_sizes_go_from_the_longest_request_to_everything(loop: Path) -> None:
    trace = load(loop)
    chosen = default_capacities(trace)
    assert (chosen[0], chosen[-1]) == (2, 10)
    points = replay(trace, chosen).points
    assert [point.shares["optimum"] for point in points] == sorted(point.shares["optimum"] for point in points)
    with pytest.raises(TraceError, match="longest request has 2"):
        check_capacities([1], trace)


def test_the_table_has_a_bar_a_size(loop: Path) -> None:
    status, out, _ = larder(loop, "--capacities", "4,10")
    assert status == 0
    assert "90 requests, 180 blocks of 512 tokens, 10 of them distinct" in out
    row = next(line for line in out.splitlines() if line.strip().startswith("10 "))
    assert re.search(r"94\.4 +94\.4 +94\.4 +█+", row), out


def test_sizes_in_bytes_need_what_a_token_takes(loop: Path) -> None:
    done = CliRunner().invoke(command, ["replay", str(loop), "--capacities", "4GB"], obj=Common())
    assert "need --token-bytes" in str(done.exception)
    done = CliRunner().invoke(
        command,
        ["replay", str(loop), "--token-bytes", "1KiB", "--capacities", "4MiB", "--format", "json"],
        obj=Common(),
    )
    (point,) = json.loads(done.stdout)["points"]
    assert (point["capacity_blocks"], point["capacity_bytes"]) == (8, 4 << 20)


def test_the_chart_is_whole_and_says_what_is_what(loop: Path, tmp_path: Path) -> None:
    status, _, _ = larder(loop, "--svg", tmp_path / "chart.svg")
    assert status == 0
    root = ElementTree.parse(tmp_path / "chart.svg").getroot()  # noqa: S314  (our own)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Larder", "LRU", "optimum"} <= set(texts)
    assert "prefers-color-scheme: dark" in (tmp_path / "chart.svg").read_text()


def test_a_chart_of_one_size_and_of_nothing_served_can_be_drawn(tmp_path: Path) -> None:
    trace = load(write(tmp_path / "trace.jsonl", {"hash_ids": [1]}, {"hash_ids": [2]}))
    figures = replay(trace, [1])
    assert isinstance(figures, Figures)
    ElementTree.fromstring(chart(figures, "<&>"))  # noqa: S314  (our own)
