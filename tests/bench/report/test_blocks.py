from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bench.report import blocks

NAN = math.nan
# Vascular grafts, four extrusion pressures on six batches of resin: Montgomery, Design and Analysis of Experiments,
# the randomized complete block design. Printed there: error mean square 7.33 on 15 degrees of freedom.
GRAFTS = np.array(
    [
        [90.3, 89.2, 98.2, 93.9, 87.4, 97.9],
        [92.5, 89.5, 90.6, 94.7, 87.0, 95.8],
        [85.5, 90.8, 89.6, 86.2, 88.0, 93.4],
        [82.5, 89.5, 85.6, 87.4, 78.9, 90.7],
    ]
)


def least_squares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(row effects, residuals, covariance of the coefficients per variance, rank) by a design matrix of indicators."""
    rows, seeds = np.nonzero(np.isfinite(values))
    design = np.hstack([np.eye(values.shape[0])[rows], np.eye(values.shape[1])[seeds]])
    found, _, rank, _ = np.linalg.lstsq(design, values[rows, seeds], rcond=None)
    return found[: len(values)], values[rows, seeds] - design @ found, np.linalg.pinv(design.T @ design), rank


def test_a_textbooks_randomized_complete_block():
    block = blocks.fit(GRAFTS)
    assert block.freedom == 15 and block.deviation**2 == pytest.approx(7.33, abs=0.005)
    differences, errors = block.against(0)
    means = GRAFTS.mean(axis=1)
    assert differences == pytest.approx(means[0] - means)
    # No row scatters more than the others here, so every error is sqrt(2 * 7.3257 / 6) but those of larger ones.
    assert errors[1:].min() >= math.sqrt(2 * 7.3257 / 6) - 1e-4
    # Tukey by hand: q(0.05; 4, 15) = 4.08 in any table, so 4.08 * sqrt(7.33 / 6) = 4.51; the means are 92.82, 91.68,
    # 88.92 and 85.77: only the last is separated from the first.
    equal = np.full(4, math.sqrt(2 * 7.33 / 6))
    assert blocks.separated(differences, equal, 15, 0.95).tolist() == [False, False, False, True]


def test_two_rows_are_the_paired_t_test():
    values = np.array([[71.4, 71.5, 71.9, 70.2], [71.0, 71.4, 71.2, 70.6]])
    block = blocks.fit(values)
    differences, errors = block.against(0)
    theirs = stats.ttest_rel(*values)
    assert block.freedom == theirs.df == 3
    assert differences[1] / errors[1] == pytest.approx(theirs.statistic)
    for ratio in (0.5, 2.0, 3.1, 3.3, 9.0):
        apart = blocks.separated(np.array([0.0, ratio]), np.array([1.0, 1.0]), 3, 0.95)
        assert apart.tolist() == [False, ratio > stats.t.ppf(0.975, 3)]


@pytest.mark.parametrize("missing", [[], [(0, 1)], [(0, 1), (3, 3), (4, 0), (4, 2)]])
def test_incomplete_blocks_against_a_design_matrix(missing: list[tuple[int, int]]):
    values = np.random.default_rng(0).normal(70, 0.2, size=(5, 4)) + np.array([[0], [0.5], [1], [3], [0.2]])
    for place in missing:
        values[place] = NAN
    block, (effects, residuals, covariance, rank) = blocks.fit(values), least_squares(values)
    freedom = len(residuals) - rank
    assert block.freedom == freedom and block.deviation**2 == pytest.approx(residuals @ residuals / freedom)
    differences, errors = block.against(2)
    assert differences == pytest.approx(effects[2] - effects)
    # Tukey and Kramer's error of a contrast, where every row has the pooled variance.
    alike = blocks.Block(**{**vars(block), "variances": np.full(5, block.deviation**2)})
    contrasts = np.eye(9)[2] - np.eye(9)[:5]
    expected = np.einsum("ci,ij,cj->c", contrasts, covariance, contrasts) * block.deviation**2
    assert alike.against(2)[1] ** 2 == pytest.approx(expected, abs=1e-15)
    assert (errors >= alike.against(2)[1] - 1e-12).all()


def test_a_seed_that_a_row_lacks_is_no_seed_it_is_bad_at():
    """Row 1 is 0.5 above row 0 on every common seed, and lacks the good seed."""
    values = np.array([[70.0, 70.1, 74.0], [70.5, 70.6, NAN], [69.0, 69.1, 73.0]])
    differences, _ = blocks.fit(values).against(1)
    assert differences == pytest.approx([0.5, 0, 1.5]) and np.nanmean(values, axis=1)[1] < values[0].mean()


def test_rows_without_common_seeds_are_compared_only_through_others():
    apart = np.array([[70.0, 70.1, NAN, NAN], [NAN, NAN, 71.0, 71.3]])
    assert blocks.fit(apart).freedom == 0 and blocks.fit(apart).against(0)[1][1] == math.inf
    linked = np.vstack([apart, [[69.0, 69.3, 69.1, 69.2]]])
    assert np.isfinite(blocks.fit(linked).against(0)[1]).all()
    islands = np.array([[1.0, 2.1, NAN, NAN], [2.0, 3.0, NAN, NAN], [NAN, NAN, 5.0, 6.3], [NAN, NAN, 5.5, 6.4]])
    assert np.isfinite(blocks.fit(islands).against(0)[1]).tolist() == [True, True, False, False]


def test_a_rows_own_variance_counts_where_it_is_larger():
    quiet = np.random.default_rng(3).normal(70, 0.2, size=(12, 3))
    noisy = 70 + np.array([[0.6, -0.6, 0.0]]) + quiet.mean(axis=0)
    block = blocks.fit(np.vstack([quiet, noisy]))
    # Its residuals are ±0.6 * 12/13 and 0: 0.72 * (12/13)^2 over 2 * 12/13 degrees of freedom, times 1 + 3 / 2^2.
    assert block.variances[-1] == pytest.approx(1.75 * 0.36 * 12 / 13)
    assert not block.wild.any() and block.variances[:-1].max() < 0.3


def test_a_diverged_run_does_not_hide_what_the_others_show():
    values = np.random.default_rng(4).normal(70, 0.2, size=(8, 3))
    values[0] += 1.5
    values[5, 1] = 1.0
    block = blocks.fit(values)
    without = blocks.fit(np.delete(values, 5, axis=0))
    assert block.wild.tolist() == [i == 5 for i in range(8)]
    assert (block.freedom, block.deviation) == (without.freedom, pytest.approx(without.deviation))
    apart = blocks.separated(*block.against(0), block.freedom, 0.95)
    assert apart.tolist() == [i not in (0, 5) for i in range(8)]  # of a mean of 47 ± 40 nothing is certain


def test_the_range_against_tables_and_scipy():
    # Studentized range at 5 %, as printed in any table: q(3, 10), q(5, 20), q(10, 30), q(4, infinity).
    for rows, freedom, q in ((3, 10, 3.88), (5, 20, 4.23), (10, 30, 4.82), (4, 1e9, 3.63)):
        assert 1 - blocks.reach(q, rows, rows, freedom) == pytest.approx(0.05, abs=0.0006)
    for rows, freedom, q in ((2, 2, 6.0), (13, 24, 5.2), (12, 4, 9.0)):
        assert blocks.reach(q, rows, rows, freedom) == pytest.approx(
            stats.studentized_range.cdf(q, rows, freedom), abs=1e-4
        )


def test_one_row_left_is_dunnetts_one_sided_test():
    samples = np.random.default_rng(5).normal(size=(4, 6)) + np.array([[0], [0.7], [1.1], [1.4]])
    found = stats.dunnett(*samples[1:], control=samples[0], alternative="greater", random_state=0)
    p = 1 - blocks.reach(math.sqrt(2) * found.statistic.max(), 1, 4, 20)
    assert p == pytest.approx(found.pvalue.min(), abs=2e-4)


def test_dunnett_against_its_table_and_scipy():
    # Two-sided 5 %: Dunnett (Biometrics 20, 1964) for 2, 5 and 9 treatments.
    for rows, freedom, quantile in ((2, 10, 2.57), (5, 20, 2.73), (9, 20, 2.95), (1, 5, 2.571)):
        assert blocks.dunnett(rows, freedom, 0.95) == pytest.approx(quantile, abs=0.006)
    samples = np.random.default_rng(6).normal(size=(4, 5)) + np.array([[0], [0.3], [0], [0.8]])
    found = stats.dunnett(*samples[1:], control=samples[0], random_state=0)
    quantile = blocks.dunnett(3, 16, 1 - found.pvalue.min())
    assert quantile == pytest.approx(np.abs(found.statistic).max(), abs=0.01)


def test_between_the_two_by_drawing():
    draws = np.random.default_rng(7).normal(size=(100_000, 6))
    for least in (2, 4):
        inside = draws.max(axis=1) - draws[:, :least].min(axis=1) <= 3.5
        assert blocks.reach(3.5, least, 6, 1e9) == pytest.approx(inside.mean(), abs=0.004)


def test_steps_ask_less_of_fewer_rows():
    # q(4, 30) is 3.85, so 2.72 standard errors of a difference; for three left of four, 2.61.
    for second, apart in ((9.0, True), (1.1, False)):
        found = blocks.separated(np.array([0.0, 2.65, 1.0, second]), np.ones(4), 30, 0.95)
        assert found.tolist() == [False, apart, False, apart]


def test_against_a_constant_the_seeds_count():
    """Variance of one run with its seed's effect, and Satterthwaite's degrees of freedom, by mean squares."""
    values = np.random.default_rng(8).normal(70, 0.2, size=(6, 4)) + np.random.default_rng(9).normal(0, 0.5, size=4)
    block = blocks.fit(values)
    seeds = 6 * values.mean(axis=0).var(ddof=1)  # mean square of seeds
    parts = seeds / 6, block.deviation**2 * 5 / 6
    assert block.spreads.min() == pytest.approx(sum(parts))
    assert block.spread_freedom == pytest.approx(sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 15))
    alone = blocks.fit(values[:1])
    assert alone.spreads[0] == pytest.approx(values[0].var(ddof=1)) and alone.spread_freedom == 3
