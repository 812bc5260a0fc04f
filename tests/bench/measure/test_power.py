from __future__ import annotations

import numpy as np
from scipy import stats

from bench.measure import power
from bench.measure.power import METHODS


def test_a_draw_has_what_it_says():
    random = np.random.default_rng(0)
    values = power.draw(random, 4000, 3, np.array([0.0, -0.5, -1.0]), noisy=1)
    assert values.shape == (4000, 4, 3)
    assert np.abs(values.mean(axis=(0, 2)) - [66, 70, 69.5, 69]).max() < 0.03
    within = (values - values[:, 3:]).std(axis=2, ddof=1)  # differences of two rows: the seeds' effects are gone
    expected = power.DEVIATION * np.sqrt([2, 1 + power.NOISY**2, 2])
    assert np.abs(np.sqrt((within[:, :3] ** 2).mean(axis=0)) / expected - 1).max() < 0.05


def test_the_other_rules_against_plain_loops():
    random = np.random.default_rng(1)
    values = power.draw(random, 40, 4, -np.linspace(0, 1.2, 5))
    holm, tukey = power.paired(values), power.tukey(values)
    for pair, by_holm, by_tukey in zip(values, holm, tukey, strict=True):
        methods = pair[1:]
        best = int(methods.mean(axis=1).argmax())
        others = [i for i in range(5) if i != best]
        p = {i: stats.ttest_rel(methods[best], methods[i]).pvalue for i in others}
        worse: set[int] = set()
        for place, i in enumerate(sorted(p, key=p.__getitem__)):
            if p[i] >= 0.05 / (4 - place):
                break
            worse.add(i)
        assert set(np.nonzero(by_holm)[0]) == worse
        away = pair - pair.mean(axis=0)
        error = ((away - away.mean(axis=1, keepdims=True)) ** 2).sum() / 15
        width = stats.studentized_range.ppf(0.95, 5, 15) * np.sqrt(error / 4)
        assert set(np.nonzero(by_tukey)[0]) == {i for i in others if (methods[best] - methods[i]).mean() > width}
    assert 0 < holm.sum() < tukey.sum()


def test_the_report_errs_seldom_and_sees_a_point():
    """As the tables of `python -m bench.power`, with few draws; a pooled error alone fails where one row is noisy."""
    random = np.random.default_rng(2)
    tied = power.draw(random, 300, 3, np.zeros(METHODS), noisy=1)
    assert power.report(tied).any(axis=1).mean() <= 0.06 < 0.1 < power.tukey(tied).any(axis=1).mean()
    means = np.full(METHODS, -3.0)
    means[:2] = 0, -1
    apart = power.draw(random, 200, 3, means)
    assert power.report(apart)[:, 1].mean() > 0.8 and power.report(apart)[:, 2:].mean() > 0.99


def test_the_tables(capsys):
    power.main(["--draws", "3"])
    text = capsys.readouterr().out
    assert text.count("| this report") == 2 and "Family-wise error" in text and "A claim fixed beforehand" in text
    power.main(["--draws", "3"])
    assert capsys.readouterr().out == text
