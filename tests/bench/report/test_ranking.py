from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from bench.report import ranking, tables
from bench.report.frames import collect
from tests.bench.report.report_cases import A, B, Grid, result


def ranked(grid: Grid) -> tuple[set[str], set[str]]:
    """Labels of the best and of the unseparated cells."""
    results = collect(grid.spec, grid.runs)
    found = ranking.rank(results)
    return tuple({results.cells[i].cell.label for i in part} for part in (found.best, found.unseparated))


def one_pair(**rows: list) -> Grid:
    grid = Grid(pairs=(A,))
    for label, states in rows.items():
        grid.add(label, "logit", A, *states)
    return grid


def tukey(values: np.ndarray) -> set[str]:
    """Rows (methods, seeds) that Tukey's interval cannot tell from the first, by SciPy.

    The variance is the pooled one times 1 + 3 / (S - 1)^2, which is a row's own where all rows scatter alike.
    """
    rows, seeds = values.shape
    residuals = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    freedom = (rows - 1) * (seeds - 1)
    variance = (residuals**2).sum() / freedom * (1 + 3 / (seeds - 1) ** 2)
    width = stats.studentized_range.ppf(0.95, rows, freedom) * np.sqrt(variance / seeds)
    return {f"M{i}" for i in range(1, rows) if values[0].mean() - values[i].mean() < width}


def test_marks_are_tukeys_where_rows_scatter_alike():
    scatter = 0.1 * np.array([[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]])
    seen = set()
    for gap in np.arange(0.05, 0.6, 0.05):
        values = 71 + scatter - gap * np.array([[0], [1], [1], [1]]) + np.array([0.3, -0.2, 0, 0.1])
        best, unseparated = ranked(one_pair(**{f"M{i}": row.tolist() for i, row in enumerate(values)}))
        assert best == {"M0"} and unseparated == tukey(values)
        seen.add(len(unseparated))
    assert seen == {0, 3}


@pytest.mark.parametrize("seeds", [3, 5])
def test_known_truth_gives_the_right_marks(seeds: int):
    """Two equal best methods, others 0.5, 1 and 3 points below; one row scatters three times as much, a seed is lost.

    Never more than 5 % of the pairs call the equal one worse, nearly all see 3 points, most see 1.
    """
    draw, marked = np.random.default_rng(seeds), Counter()
    below = {"best": 0, "equal": 0, "half": 0.5, "one": 1, "three": 3, "noisy": 3.5, "lost": 3, "far": 4, "farther": 5}
    for _ in range(100):
        seed_effects, rows = draw.normal(0, 0.15, size=seeds), {}
        for label, points in below.items():
            deviation = 0.66 if label == "noisy" else 0.22
            values = (75 - points + seed_effects + draw.normal(0, deviation, size=seeds)).round(2).tolist()
            rows[label] = [*values[:-1], "failed: no disk"] if label == "lost" else values
        best, unseparated = ranked(one_pair(**rows))
        marked.update(best | unseparated)
    assert marked["equal"] >= 95 and marked["best"] >= 95
    assert marked["three"] == marked["farther"] == 0 and marked["lost"] <= 5 and marked["noisy"] <= 20
    assert marked["one"] <= {3: 30, 5: 2}[seeds] and marked["half"] <= {3: 90, 5: 60}[seeds]


def test_a_single_rival_is_marked_exactly_where_the_95_percent_interval_holds_0():
    # Difference mean 0.3, standard error 0.1 (see test_statistics): t(2) at 0.975 is 4.303, so 0.43 is needed.
    b = [71.0, 71.4, 71.2]
    assert ranked(one_pair(a=[71.4, 71.5, 71.6], b=b)) == ({"a"}, {"b"})
    assert ranked(one_pair(a=[71.6, 71.7, 71.8], b=b)) == ({"a"}, set())


def test_more_methods_ask_for_more():
    # The same 0.5 ± 0.1 as above, p = 0.038, is not enough for the nearer of two.
    rows = {"a": [71.6, 71.7, 71.8], "b": [71.0, 71.4, 71.2]}
    assert ranked(one_pair(**rows, c=[71.0, 71.5, 71.1])) == ({"a"}, {"b", "c"})
    # With a third that is surely worse, the step down leaves the usual 5 % for the nearest.
    assert ranked(one_pair(**rows, c=[61.0, 61.1, 61.2])) == ({"a"}, set())


def test_unseparated_by_paired_seeds_and_not_by_overlapping_spreads():
    # Spreads overlap widely, yet every seed puts a exactly 0.5 above b.
    rows = {"a": [70.0, 72.0, 74.0], "b": [69.5, 71.5, 73.5]}
    assert ranked(one_pair(**rows)) == ({"a"}, set())
    # c's seeds disagree, and of three rows the error is everyone's.
    assert ranked(one_pair(**rows, c=[73.0, 72.0, 70.5])) == ({"a"}, {"b", "c"})


def test_identical_runs_are_tied():
    assert ranked(one_pair(a=[70.0, 72.0], b=[70.0, 72.0], c=[60.0, 60.5])) == ({"a", "b"}, set())


def test_two_seeds_separate_only_what_differs_alike():
    # One degree of freedom: 5 ± 0.5 is a standard error of 0.5, t = 10 < 12.7.
    assert ranked(one_pair(a=[75.5, 75.5], b=[70.0, 71.0])) == ({"a"}, {"b"})


def test_the_best_of_all_seeds_may_be_behind_on_the_common_ones():
    a = [result(70.0, 0), result(70.0, 1), result(90.0, 2)]
    b = [result(71.0, 0), result(71.0, 1), result(71.0, 3)]
    assert ranked(one_pair(a=a, b=b)) == ({"a"}, {"b"})


def test_pairs_are_corrected_each_for_itself():
    grid = Grid()
    for pair in (A, B):
        grid.add("a", "logit", pair, 71.6, 71.7, 71.8)
        grid.add("b", "logit", pair, 71.0, 71.4, 71.2)
    assert ranked(grid) == ({"a"}, set())


@pytest.mark.parametrize("states", [["missing"] * 3, [71.0, "failed: x", "missing"], [71.0]])
def test_a_single_run_is_no_rival(states: list):
    rows = {"a": [71.6, 71.7, 71.8], "b": [71.0, 71.4, 71.2], "c": states}
    assert ranked(one_pair(**rows)) == ({"a"}, set())


def test_a_lost_seed_does_not_hide_a_method():
    rows = {"a": [71.6, 71.7, 71.8], "b": [61.0, 61.1, 61.3]}
    assert ranked(one_pair(**rows, c=[71.5, 71.6, "failed: x"])) == ({"a"}, {"c"})
    assert ranked(one_pair(**rows, c=[66.0, 66.2, "failed: x"])) == ({"a"}, set())
    # It is never best, and where it is ahead it is not shown to be worse.
    assert ranked(one_pair(**rows, c=[75.0, 75.1, "running: 1/4"])) == ({"a"}, {"c"})


@pytest.mark.parametrize("student", [66.0, 79.0])
def test_the_student_row_tells_of_the_error_and_is_not_ranked(student: float):
    made = one_pair(a=[71.9, 71.9, 72.3], b=[71.4, 71.6, 71.5])
    assert ranked(made) == ({"a"}, {"b"})  # two degrees of freedom: 0.53 ± 0.62
    made.add("Student", "student", A, student, student + 0.1, student + 0.2)
    assert ranked(made) == ({"a"}, set())


def test_a_row_that_scatters_wildly_is_named():
    made = one_pair(**{f"M{i}": [71 - i + 0.1 * (i % 2), 71.2 - i, 71.1 - i] for i in range(5)}, wild=[70.5, 70.4, 1.0])
    results = collect(made.spec, made.runs)
    found = ranking.rank(results)
    assert [results.cells[i].cell.label for i in found.wild] == ["wild"] and found.freedom[A] == 8
    assert {results.cells[i].cell.label for i in found.unseparated} == {"wild"}
    notes = [note.body for note in tables.last_table(results, found).notes]
    assert any(note.startswith("wild on resnet56 → resnet20: its seeds scatter more than 5 times") for note in notes)
    assert any("(8 degrees of freedom)" in note for note in notes)


def test_equal_methods_are_seldom_called_worse():
    draw, wrong = np.random.default_rng(1), 0
    for values in draw.normal(70, 0.3, size=(150, 12, 3)).round(2):
        best, unseparated = ranked(one_pair(**{f"M{i}": row.tolist() for i, row in enumerate(values)}))
        wrong += len(best | unseparated) < 12
    assert wrong / 150 <= 0.05  # 0.6 without correction


def test_the_rules_say_what_is_done():
    assert "Tukey" in ranking.UNSEPARATED_RULE and "5 %" in ranking.UNSEPARATED_RULE
    assert "largest mean" in ranking.BOLD_RULE
