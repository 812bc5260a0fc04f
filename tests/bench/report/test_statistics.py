from __future__ import annotations

import math
import random
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from bench.report.frames import Results, collect
from bench.report.statistics import Aggregate, Bootstrap, Gain, Interval, aggregate, designs, gains
from tests.bench.report.report_cases import A, B, Grid, result

C = ("vgg13", "vgg8")
ONES = [np.ones(3)] * 6


def compare(grid: Grid, ours: str, other: str, pair: tuple[str, str] = A) -> Gain | None:
    """One row minus another on a pair."""
    results = collect(grid.spec, grid.runs)
    cells = {summary.cell.label: summary for summary in results.cells if summary.column == pair}
    return designs(results)[pair].compare(cells[ours], cells[other])


def gain(results: Results, label: str, pair: tuple[str, str]) -> Gain | None:
    places = [i for i, s in enumerate(results.cells) if (s.cell.label, s.column) == (label, pair)]
    return gains(results).get(places[0]) if places else None


def two(a: list, b: list) -> Gain | None:
    """Row a minus row b on one pair; states as in Grid.add."""
    grid = Grid(pairs=(A,))
    grid.add("a", "logit", A, *a)
    grid.add("b", "logit", A, *b)
    return compare(grid, "a", "b")


def rows(grid: Grid) -> dict[str, Aggregate]:
    return {row.label: row for row in aggregate(collect(grid.spec, grid.runs))}


# ---- two rows on a pair


def test_three_seeds_by_hand():
    # Differences 0.4, 0.1, 0.4: mean 0.3, variance 0.03, standard error 0.1; t(2) at 0.975 is 4.3027 in any table.
    # For two degrees of freedom p = 1 - t / sqrt(2 + t^2), here with t = 3.
    found = two([71.4, 71.5, 71.6], [71.0, 71.4, 71.2])
    assert found.mean == pytest.approx(0.3) and found.seeds == 3
    assert (found.interval.low, found.interval.high) == pytest.approx((0.3 - 0.43027, 0.3 + 0.43027), abs=1e-4)
    assert (found.interval.level, found.interval.how) == (0.95, "3 seeds, 2 degrees of freedom")
    assert found.p == pytest.approx(1 - 3 / math.sqrt(11))


def test_two_seeds_by_hand():
    # One degree of freedom: t(1) at 0.975 is 12.7062, and p = 1 - 2/pi atan(t).
    found = two([71.4, 71.6], [71.2, 71.2])
    assert (found.interval.low, found.interval.high) == pytest.approx((0.3 - 1.27062, 0.3 + 1.27062), abs=1e-4)
    assert found.p == pytest.approx(1 - 2 / math.pi * math.atan(3))


def test_against_scipys_paired_test():
    a, b = [71.4, 71.5, 71.9, 70.2, 71.1], [71.0, 71.4, 71.2, 70.6, 70.7]
    theirs, found = stats.ttest_rel(a, b), two(a, b)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert found.p == pytest.approx(theirs.pvalue)


def test_one_seed_has_no_interval_and_separates_nothing():
    found = two([79.0], [60.0])
    assert (found.mean, found.seeds, found.interval, found.p) == (19.0, 1, None, 1.0)


def test_equal_differences_are_a_point_and_ties_are_never_separated():
    tie, ahead = two([71.0, 71.2], [71.0, 71.2]), two([70.0, 72.0, 74.0], [69.5, 71.5, 73.5])
    assert (tie.mean, tie.interval.low, tie.interval.high, tie.p) == pytest.approx((0, 0, 0, 1), abs=1e-6)
    assert (ahead.mean, ahead.interval.low, ahead.interval.high, ahead.p) == pytest.approx((0.5, 0.5, 0.5, 0), abs=1e-6)


def test_only_common_seeds_count():
    ours = [result(value, seed) for seed, value in ((0, 71.4), (1, 71.5), (2, 71.6), (7, 99.0))]
    theirs = [result(value, seed) for seed, value in ((8, 1.0), (2, 71.2), (1, 71.4), (0, 71.0))]
    assert two(ours, theirs) == two([71.4, 71.5, 71.6], [71.0, 71.4, 71.2])
    assert two(ours[3:], theirs[:1]) is None


@pytest.mark.parametrize("state", ["missing", "failed: disk full", "blocked: no teacher", "running: 1/4"])
def test_unfinished_cells_are_not_compared(state: str):
    assert two([71.0, 71.2, state], [70.0, 70.2, 70.4]) is None
    assert two([71.0, 71.2], [70.0, state]) is None


def test_a_teacher_is_one_run_for_every_seed():
    grid = Grid(pairs=(A,))
    grid.add("Teacher", "teacher", A, 71.2)
    grid.add("SKD", "ours", A, result(71.4, 3), result(71.5, 4), result(71.6, 5))
    theirs = stats.ttest_1samp(np.array([71.4, 71.5, 71.6]) - 71.2, 0)
    above, below = compare(grid, "SKD", "Teacher"), compare(grid, "Teacher", "SKD")
    assert (above.interval.low, above.interval.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert (
        above.p == pytest.approx(theirs.pvalue)
        and above.interval.how == "3 seeds against one teacher run, 2 degrees of freedom"
    )
    assert (below.mean, below.interval.low) == pytest.approx((-above.mean, -above.interval.high))


def test_t_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(1)
    for n in (2, 3, 5):
        held = 0
        for values in random.normal(70, 0.3, size=(400, 2, n)).round(2):  # accuracies come in hundredths
            interval = two(*values.tolist()).interval
            held += interval.low <= 0 <= interval.high
        assert 0.92 <= held / 400 <= 0.98


# ---- gains over the Student row


def test_gains_by_cell_and_by_name_agree():
    grid = Grid()
    for pair in (A, B):
        grid.add("Teacher", "teacher", pair, 72.0)
        grid.add("KD", "logit", pair, 71.0, 71.4, 71.2)
        grid.add("MLKD", "logit", pair, 71.0, 71.4, "missing")
        grid.add("Student", "student", pair, 66.0, 66.3, 66.6 if pair == A else "missing")
    results = collect(grid.spec, grid.runs)
    found = gains(results)
    assert set(found) == {0, 1}  # Teacher and KD on A
    assert found[1].mean == pytest.approx(71.2 - 66.3) and found[0].mean == pytest.approx(72.0 - 66.3)
    assert gain(results, "KD", A) == found[1] and gain(results, "Teacher", A) == found[0]
    assert gain(results, "MLKD", A) is gain(results, "KD", B) is gain(results, "RKD", A) is None


def test_gains_of_a_pair_are_dunnetts():
    """All methods against the Student row at once: one multiplier for all, and an error from every row."""
    made, draw = Grid(pairs=(A,)), np.random.default_rng(0)
    for label, kind in (
        ("Student", "student"),
        ("KD", "logit"),
        ("DKD", "logit"),
        ("SDD", "logit"),
        ("RKD", "feature"),
    ):
        made.add(label, kind, A, *(70 + draw.normal(0, 0.2, size=3)).tolist())
    made.add("Teacher", "teacher", A, 72.0)
    results = collect(made.spec, made.runs)
    found = gains(results)
    halves = {i: (gain.interval.high - gain.interval.low) / 2 / gain.error for i, gain in found.items()}
    assert found[1].freedom == 8 and found[1].how == "3 seeds, 8 degrees of freedom"
    # Dunnett's table, two-sided 5 %, 4 treatments and 8 degrees of freedom: 3.02. The teacher is no method: t alone.
    assert [halves[i] for i in (1, 2, 3, 4)] == pytest.approx([3.02] * 4, abs=0.01)
    assert halves[5] == pytest.approx(stats.t.ppf(0.975, found[5].freedom))


def test_intervals_against_a_teacher_hold_the_truth_as_often_as_they_say():
    draw, held = np.random.default_rng(2), 0
    for _ in range(400):
        seeds = draw.normal(0, 0.3, size=3)
        made = Grid(pairs=(A,))
        made.add("Teacher", "teacher", A, 70.0)
        for i, row in enumerate(70 + seeds + draw.normal(0, 0.2, size=(8, 3))):
            made.add(f"M{i}", "logit", A, *row.round(2).tolist())
        interval = compare(made, "M0", "Teacher").interval
        held += interval.low <= 0 <= interval.high
    assert 0.93 <= held / 400 <= 0.99


def test_without_a_student_row_nothing_is_gained():
    grid = Grid(pairs=(A,))
    grid.add("KD", "logit", A, 71.0, 71.4)
    results = collect(grid.spec, grid.runs)
    assert gains(results) == {} and aggregate(results) == [] and gain(results, "KD", A) is None


# ---- over pairs


def test_pairs_weigh_the_same_and_the_gap_is_a_ratio_of_sums():
    grid = Grid()
    for pair, teacher, student, kd in ((A, 72.0, 66.0, 69.0), (B, 75.0, 71.0, 76.0)):
        grid.add("Teacher", "teacher", pair, teacher)
        grid.add("Student", "student", pair, student - 0.1, student, student + 0.1)
        grid.add("KD", "logit", pair, kd, kd, kd)
    row = rows(grid)["KD"]
    # Gains 3 and 5; gaps 6 and 4: (3 + 5) / (6 + 4), where the mean of the ratios would be 0.875.
    assert (row.gain, row.gap_closed) == pytest.approx((4.0, 0.8))
    assert (row.group, row.pairs, row.note, row.ranked) == ("logit", (A, B), "", True)
    assert row.interval.low < 4 < row.interval.high and row.gap_interval.low < 0.8 < row.gap_interval.high


def test_one_seed_gives_numbers_without_intervals():
    grid = Grid()
    for pair in (A, B):
        grid.add("Teacher", "teacher", pair, 72.0)
        grid.add("Student", "student", pair, 66.0)
        grid.add("KD", "logit", pair, 69.0)
    row = rows(grid)["KD"]
    assert (row.gain, row.interval, row.gap_closed, row.gap_interval) == (3.0, None, 0.5, None)
    assert row.note == "one seed on 2 pairs: no interval"


def test_one_pair_is_the_paired_t_interval_of_its_gain():
    grid = Grid(pairs=(A,))
    grid.add("Teacher", "teacher", A, 72.0)
    grid.add("Student", "student", A, 66.0, 66.3, 66.6)
    grid.add("KD", "logit", A, 71.0, 71.4, 71.2)
    row, single = rows(grid)["KD"], gain(collect(grid.spec, grid.runs), "KD", A)
    assert (row.interval.low, row.interval.high) == pytest.approx((single.interval.low, single.interval.high), abs=1e-4)
    assert row.interval.how == row.gap_interval.how == "paired t, 3 seeds"


def test_fewer_pairs_are_said_and_not_ranked():
    grid = Grid(pairs=(A, B, C))
    for pair in (A, B, C):
        grid.add("Student", "student", pair, 66.0, 66.3)
        grid.add("KD", "logit", pair, 69.0, 69.1)
        grid.add("DKD", "logit", pair, 70.0, 70.1 if pair == A else "missing")
        grid.add("SDD", "logit", pair, *(["failed: x"] * 2))
    found = rows(grid)
    assert set(found) == {"KD", "DKD"} and found["KD"].ranked and found["KD"].note == "teacher unfinished on 3 pairs"
    assert not found["DKD"].ranked and found["DKD"].pairs == (A,)
    assert found["DKD"].note.startswith("1 of 3 pairs; ") and found["DKD"].note.endswith("that have other pairs")
    assert found["KD"].gap_closed is None


def test_of_equally_many_pairs_the_commonest_set_is_ranked():
    grid = Grid()
    for pair in (A, B):
        grid.add("Student", "student", pair, 66.0, 66.3)
        for label, has in (("KD", A), ("DKD", B), ("SDD", B)):
            grid.add(label, "logit", pair, 69.0, 69.1 if pair == has else "missing")
    assert {label: row.ranked for label, row in rows(grid).items()} == {"KD": False, "DKD": True, "SDD": True}


def test_a_teacher_not_above_its_student_leaves_no_gap():
    grid = Grid()
    for pair, teacher in ((A, 66.3), (B, 72.3)):
        grid.add("Teacher", "teacher", pair, teacher)
        grid.add("Student", "student", pair, 66.2, 66.4)
        grid.add("KD", "logit", pair, 69.2, 69.4)
    row = rows(grid)["KD"]
    assert row.gap_closed == pytest.approx(3 / 6) and row.gain == pytest.approx(3)
    assert row.note == "teacher not above the Student row on 1 pair"


def test_a_gap_within_the_noise_has_no_interval():
    for pairs in ((A,), (A, B, C)):
        grid = Grid(pairs=pairs)
        for pair in pairs:
            grid.add("Teacher", "teacher", pair, 66.4)
            grid.add("Student", "student", pair, 66.0, 66.3, 66.8)
            grid.add("KD", "logit", pair, 69.2, 69.4, 69.1)
        row = rows(grid)["KD"]
        assert row.gap_interval is None and row.interval and "gap too small for an interval" in row.note


# ---- the bootstrap


def plain_loop(above: list[list[float]], below: list[list[float]], times: int) -> tuple[float, float]:
    """The same interval with Python's own random numbers, a resample at a time."""
    draw, ratios = random.Random(3), []
    for _ in range(times):
        top = bottom = 0.0
        for over, under in zip(above, below, strict=True):
            chosen = [draw.randrange(len(over)) for _ in range(len(over) - 1)]
            top += sum(over[i] for i in chosen) / len(chosen)
            bottom += sum(under[i] for i in chosen) / len(chosen)
        ratios.append(top / bottom)
    ratios.sort()
    tail = stats.norm.cdf(stats.t.ppf(0.025, sum(len(over) - 1 for over in above)))
    return ratios[round(tail * times)], ratios[round((1 - tail) * times)]


def test_bootstrap_against_a_plain_loop():
    above = [[3.0, 3.4, 2.9], [5.1, 4.8, 5.6, 5.0], [1.0, 1.9, 1.2]]
    below = [[6.0, 6.2, 5.9], [4.0, 4.3, 4.1, 4.4], [5.0, 5.2, 5.5]]
    found = Bootstrap().interval(list(map(np.array, above)), list(map(np.array, below)))
    assert (found.low, found.high) == pytest.approx(plain_loop(above, below, 20_000), abs=0.004)
    assert found.how == "stratified bootstrap, 10,000 resamples" and found.high - found.low > 0.05


def test_bootstrap_of_many_seeds_is_the_normal_interval():
    random = np.random.default_rng(2)
    values = [random.normal(3, 0.5, 200), random.normal(5, 0.2, 300)]
    error = math.sqrt(sum(stratum.var(ddof=1) / len(stratum) for stratum in values)) / 2
    mean = sum(stratum.mean() for stratum in values) / 2
    found = Bootstrap().interval(values, [np.ones(len(stratum)) for stratum in values])
    assert (found.low, found.high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.06 * error)


def test_too_few_seeds_to_resample_fall_back_on_t():
    # Two seeds on each of two pairs have four resamples. Standard error of the mean of two means, t(2).
    values = [np.array([3.0, 3.4]), np.array([5.0, 5.2])]
    error = math.sqrt(0.08 / 2 + 0.02 / 2) / 2
    found = Bootstrap().interval(values, [np.ones(2)] * 2)
    assert (found.low, found.high) == pytest.approx((4.15 - 4.30265 * error, 4.15 + 4.30265 * error), abs=1e-4)
    assert found.how == "stratified t, 4 seeds on 2 pairs"
    assert Bootstrap().interval([np.array([3.0]), np.array([5.0, 5.2])], [np.ones(1), np.ones(2)]) is None


def test_the_bootstrap_is_the_same_every_time_and_whatever_the_other_rows():
    values = [np.array([3.0, 3.4, 2.9]), np.array([5.1, 4.8, 5.6]), np.array([1.0, 1.9, 1.2])]
    used = Bootstrap()
    used.interval([*values, np.array([2.0, 2.1, 2.4, 2.2])], [np.ones(3)] * 3 + [np.ones(4)])
    assert used.interval(values, ONES[:3]) == Bootstrap().interval(values, ONES[:3])


def test_bootstrap_intervals_hold_the_truth_more_often_than_plain_percentiles():
    draw, bootstrap = np.random.default_rng(4), Bootstrap()
    held = held_plain = 0
    for values in draw.normal(0, 0.4, size=(400, 6, 3)):
        found = bootstrap.interval(list(values), ONES)
        held += found.low <= 0 <= found.high
        resampled = values[np.arange(6)[:, None, None], draw.integers(3, size=(6, 1000, 3))].mean(axis=(0, 2))
        low, high = np.quantile(resampled, [0.025, 0.975])
        held_plain += low <= 0 <= high
    assert 0.91 <= held / 400 <= 0.98
    assert held_plain / 400 <= 0.90


def test_all_rows_of_the_full_grid_get_bootstrap_intervals():
    grid, draw = Grid(pairs=tuple((f"t{i}", f"s{i}") for i in range(6))), random.Random(0)
    for pair in grid.pairs:
        grid.add("Teacher", "teacher", pair, 75.0)
        for label in ("Student", *(f"M{i}" for i in range(12))):
            kind = "student" if label == "Student" else "logit"
            grid.add(label, kind, pair, *(round(draw.gauss(70, 0.3), 2) for _ in range(3)))
    found = rows(grid)
    assert len(found) == 12 and all("bootstrap" in row.interval.how and row.gap_interval for row in found.values())


def test_statistics_and_claims_do_not_wait_for_torch():
    code = (
        "import sys, bench.report.ranking, bench.report.statistics, bench.report.claims as claims; claims.load(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_types_are_plain():
    grid = Grid(pairs=(A,))
    grid.add("Student", "student", A, 66.0, 66.3)
    grid.add("KD", "logit", A, 71.0, 71.4)
    results: Results = collect(grid.spec, grid.runs)
    (row,) = aggregate(results)
    assert type(row.gain) is type(row.interval.low) is float and isinstance(row.interval, Interval)
