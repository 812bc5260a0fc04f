from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bench.report import ranking
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


def holm_by_adjusted_p(values: np.ndarray) -> set[int]:
    """Rows (methods, seeds) not separated from the first, by SciPy's paired test and Holm's adjusted p-values."""
    p = [stats.ttest_rel(values[0], row).pvalue for row in values[1:]]
    adjusted, so_far = {}, 0.0
    for place, i in enumerate(np.argsort(p)):
        so_far = max(so_far, min(1.0, (len(p) - place) * p[i]))
        adjusted[int(i) + 1] = so_far
    return {i for i, value in adjusted.items() if value >= 0.05}


def test_marks_are_holms_on_random_results():
    draw, seen = np.random.default_rng(0), set()
    for _ in range(60):
        values = np.array([71.0, 70.9, 70.6, 70.3, 69.5, 68.0])[:, None] + draw.normal(0, 0.2, size=(6, 4))
        values = values[np.argsort(-values.mean(axis=1))]
        grid = one_pair(**{f"M{i}": row.tolist() for i, row in enumerate(values)})
        expected = {f"M{i}" for i in holm_by_adjusted_p(values)}
        best, unseparated = ranked(grid)
        assert unseparated == expected - best
        seen.add(len(unseparated))
    assert len(seen) > 2


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
    # Spreads overlap widely, yet every seed puts a exactly 0.5 above b; c's seeds disagree.
    rows = {"a": [70.0, 72.0, 74.0], "b": [69.5, 71.5, 73.5], "c": [73.0, 72.0, 70.5]}
    assert ranked(one_pair(**rows)) == ({"a"}, {"c"})


def test_identical_runs_are_tied():
    assert ranked(one_pair(a=[70.0, 72.0], b=[70.0, 72.0], c=[60.0, 60.5])) == ({"a", "b"}, {"c"})


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


@pytest.mark.parametrize("states", [["missing"] * 3, [71.0, 71.0, "failed: x"], [71.0]])
def test_what_is_unfinished_or_of_other_length_is_no_rival(states: list):
    rows = {"a": [71.6, 71.7, 71.8], "b": [71.0, 71.4, 71.2], "c": states}
    assert ranked(one_pair(**rows)) == ({"a"}, set())


def test_equal_methods_are_seldom_called_worse():
    draw, wrong = np.random.default_rng(1), 0
    for values in draw.normal(70, 0.3, size=(150, 12, 3)).round(2):
        best, unseparated = ranked(one_pair(**{f"M{i}": row.tolist() for i, row in enumerate(values)}))
        wrong += len(best | unseparated) < 12
    assert wrong / 150 < 0.2  # 0.6 without correction


def test_the_rules_say_what_is_done():
    assert "Holm" in ranking.UNSEPARATED_RULE and "5 %" in ranking.UNSEPARATED_RULE
    assert "largest mean" in ranking.BOLD_RULE
