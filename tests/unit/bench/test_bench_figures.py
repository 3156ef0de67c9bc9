"""The arithmetic of the benchmark: ratios round by round, targets, comparison of bytes."""

import numpy as np
import pytest

from bench import metadata
from bench.limits import Buffers, compare
from bench.moving import LIMIT_OF, MIB, Series
from bench.report import TARGETS, Target, bytes_targets, master_targets


def test_a_ratio_is_taken_round_by_round() -> None:
    """A machine that was slow in one round slowed both; a ratio of medians would say 1."""
    ours, limit = Series([1.0, 8.0, 9.0], [0.1]), Series([2.0, 16.0, 8.0], [0.1])
    assert ours.gbps == limit.gbps == 8.0
    assert ours.ratio(limit) == 0.5


def test_figures_are_medians_in_their_units() -> None:
    series = Series([1.0, 5.0, 2.0], [0.001, 0.5, 0.002])
    assert (series.gbps, series.p50_us) == (2.0, 2000.0)


@pytest.mark.parametrize(
    ("measured", "at_least", "met"), [(0.8, True, True), (0.79, True, False), (0.81, False, False)]
)
def test_a_target_is_met_or_missed(measured: float, at_least: bool, met: bool) -> None:
    assert Target("share", measured, 0.8, "", at_least=at_least).met is met


def test_targets_are_judged_from_one_mib_up_and_against_the_right_limit() -> None:
    slow, fast = Series([1.0], [1.0]), Series([4.0], [1.0])
    sizes = (MIB // 16, MIB)
    measured = {(name, size, way): slow for name in TARGETS for size in sizes for way in ("put", "get")}
    measured |= {(LIMIT_OF[name], size, way): fast for name in TARGETS for size in sizes for way in ("put", "get")}
    targets = list(bytes_targets(measured, sizes))
    assert [target.measured for target in targets] == [0.25] * 4
    assert not any(target.met for target in targets)


def test_growth_is_judged_for_every_op_of_core_and_served_master() -> None:
    times = {
        (name, objects, op): [objects / 1e9] for name in ("core", "gRPC") for objects in (1, 2) for op in metadata.OPS
    }
    targets = list(master_targets(times, 1, 2, bytes_per_object=1537.0))
    missed = [target.what for target in targets if not target.met]
    assert len(missed) == 1 + 2 * len(metadata.OPS)


def test_calls_go_in_rows_and_the_first_of_each_is_kept_by_itself() -> None:
    subject, rounds = metadata.PlainDict(metadata.KEYS + 1), 3
    metadata.fill(subject, lambda text: None)
    times = metadata.measure([subject], rounds, lambda text: None)
    rows, first = (times[subject.name, subject.objects, "match" + which] for which in ("", metadata.FIRST))
    assert len(rows) == rounds * metadata.ROW  # without the round that warms up
    assert first == rows[:: metadata.ROW]


def test_the_bench_notices_bytes_that_came_back_wrong() -> None:
    source = np.arange(64, dtype=np.uint8)
    good, bad = source.copy(), source.copy()
    bad[63] ^= 1
    compare(Buffers.cut(source, 16, 4), Buffers.cut(good, 16, 4))
    with pytest.raises(RuntimeError, match="not what was put"):
        compare(Buffers.cut(source, 16, 4), Buffers.cut(bad, 16, 4))
