"""Methods x seeds of one pair as a block design, and what a difference between its rows is uncertain by.

A seed is a block: it gives every row of a pair the same initial weights, data order and augmentation. The model is
accuracy = row + seed + error, by least squares over the runs there are. Removing the seeds and pooling the error over
the rows gives (M - 1)(S - 1) degrees of freedom for M rows with S seeds each, where a paired test has S - 1.

Pooling takes rows that scatter alike, and no test can check that with three seeds: Brown and Forsythe's (JASA 69, 1974)
almost never rejects, be one of thirteen deviations three times the others or one run diverged. So nothing is tested. A
row's variance is the pooled one or, where larger, its own times 1 + 3 / (S - 1)^2, and a wild row is left out of
pooling. The factor is chosen by simulation so that the family-wise error stays at 5 % (`python -m bench.power`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import gammaincinv, ndtr

WILD = 25.0  # times the median variance of a pair's rows: 5 times its deviation
LEAST_WILD = 5  # rows: of fewer none is called wild
LEAST_ERROR = 1e-9  # points: of rows that differ alike on every seed
LEAST_VARIANCE = 1e-4  # points²: accuracies come in hundredths
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True)
class Block:
    """A fitted design of M rows. Variances are of one run, in points²; each is the pooled one or, if larger, its own.

    `weights` (M, M, S) turn runs into row effects, which are comparable only among rows that are `linked` (M, M) by
    common seeds, directly or through other rows.
    """

    effects: np.ndarray  # (M,)
    weights: np.ndarray
    linked: np.ndarray
    variances: np.ndarray  # (M,) of the error, seeds removed
    freedom: int  # of the pooled error; 0 where there is none, and no comparison
    deviation: float  # the pooled one, in points; NaN without freedom
    spreads: np.ndarray  # (M,) variance over seeds, seed effects included: for one row against a constant
    spread_freedom: float  # Satterthwaite's
    wild: np.ndarray  # (M,) rows left out of pooling

    def against(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(M,) differences `row` - each, in points, and their standard errors; infinite where not linked."""
        contrasts = self.weights[row] - self.weights
        errors = np.sqrt(np.einsum("ims,m->i", contrasts**2, self.variances))
        errors = np.where(self.linked[row] & (self.freedom > 0), np.maximum(errors, LEAST_ERROR), np.inf)
        return self.effects[row] - self.effects, errors


def fit(values: np.ndarray) -> Block:
    """`values` (M, S): accuracies in percent, NaN where a run is missing; at least two runs in every row."""
    values = values[:, np.isfinite(values).any(axis=0)]
    here = np.isfinite(values)
    wild = _wild(values)
    kept = values[~wild]
    effects, weights, residuals, spare, rank = _least_squares(values)
    inside = here[~wild]
    if wild.any():
        *_, residuals, spare, rank = _least_squares(kept)
    freedom = int(inside.sum() - inside.any(axis=0).sum() - rank)
    squares = (residuals**2).sum(axis=1)
    pooled = squares.sum() / freedom if freedom else math.nan

    spreads = _variances(values)
    inside_freedom = int((inside.sum(axis=1) - 1).sum())
    within = float((spreads[~wild] * (inside.sum(axis=1) - 1)).sum())
    parts = ((squares.sum(), freedom), (max(within - squares.sum(), 0.0), inside_freedom - freedom))
    below = sum(square**2 / n for square, n in parts if n)
    spread_freedom = within**2 / below if within > 1e-12 else float(inside_freedom)

    own = np.array(spreads)  # a wild row's seed effects are nothing beside its error
    own[~wild] = np.divide(squares, spare, out=np.zeros_like(squares), where=spare > 1e-9)
    # Two rows share their residuals: there is nothing to tell their variances by, and none is needed.
    factor = 1 + 3 / (here.sum(axis=1) - 1) ** 2 if len(values) > 2 else 1.0
    total = within / inside_freedom
    return Block(
        effects,
        weights,
        _linked(here),
        np.fmax(pooled, own * factor),
        freedom,
        math.sqrt(pooled),
        np.fmax(total, spreads * (factor if len(values) > 1 else 1.0)),
        spread_freedom,
        wild,
    )


def separated(differences: np.ndarray, errors: np.ndarray, freedom: int, level: float) -> np.ndarray:
    """Which rows are below the best: (M,) booleans for `differences` best - row, the best's own among them (0).

    The family-wise error, that any row as good as the best one is called worse, is at most 1 - `level`. The row with
    the largest difference is held against the range of all M (Tukey), the k-th against the distance from the largest of
    M to the smallest of the M - k + 1 rows left, until one is not separated. That is the closed test of "these rows are
    all as good as the best", and ends at the constant of Hsu's comparison with the best (The Annals of Statistics 12,
    1984), which for itself lets any of several equal best rows be called worse more often.
    """
    ratios = differences / errors
    found = np.zeros(len(ratios), bool)
    order = np.argsort(-ratios, kind="stable")
    for place, row in enumerate(order[:-1]):
        if ratios[row] <= 0 or reach(math.sqrt(2) * ratios[row], len(ratios) - place, len(ratios), freedom) < level:
            break
        found[row] = True
    return found


def reach(width: float, least: int, rows: int, freedom: float) -> float:
    """P(largest of `rows` means - smallest of `least` of them <= `width` standard errors), all expectations equal.

    With `least` = `rows` it is the distribution of the studentized range. By Gauss-Legendre quadrature, to 1e-4:
    SciPy's studentized_range takes a quarter of a second for a quantile, and has no `least`.
    """
    lowest = 8 * _NODES
    top = ndtr(lowest + width * _scales(freedom)[:, None])
    density = least * (top - ndtr(lowest)) ** (least - 1) * top ** (rows - least)
    return float(_WEIGHTS / 2 @ density @ _normal())


@cache
def dunnett(rows: int, freedom: float, level: float) -> float:
    """Two-sided quantile of the largest of `rows` differences from one fixed row, in standard errors (Dunnett 1955)."""
    scales, control = _scales(freedom)[:, None], 8 * _NODES

    def probability(width: float) -> float:
        inside = ndtr(control + math.sqrt(2) * width * scales) - ndtr(control - math.sqrt(2) * width * scales)
        return float(_WEIGHTS / 2 @ inside**rows @ _normal())

    low, high = 0.0, 1e5  # bisection: the quantile of one degree of freedom is in the hundreds
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < level else (low, middle)
    return high


@cache
def _scales(freedom: float) -> np.ndarray:
    """Estimated over true deviation at the quadrature's quantiles."""
    return np.sqrt(2 * gammaincinv(freedom / 2, (_NODES + 1) / 2) / freedom)


@cache
def _normal() -> np.ndarray:
    """Weights of the standard normal density on ±8."""
    return 8 * _WEIGHTS * np.exp(-((8 * _NODES) ** 2) / 2) / math.sqrt(2 * math.pi)


def _least_squares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """(effects, weights, residuals, residual degrees of freedom by row, rank) of the additive model.

    By the reduced normal equations of the rows (Cochran and Cox, Experimental Designs, 1957, on incomplete blocks).
    """
    here = np.isfinite(values)
    filled, by_seed = np.where(here, values, 0.0), here.sum(axis=0)
    share = here / by_seed
    normal = np.diag(here.sum(axis=1)) - here @ share.T
    inverse = np.linalg.pinv(normal, rcond=1e-9, hermitian=True)
    weights = here * (inverse[:, :, None] - (inverse @ share)[:, None, :])
    effects = np.einsum("ims,ms->i", weights, filled)
    seeds = (share * (filled - effects[:, None])).sum(axis=0)
    residuals = np.where(here, values - effects[:, None] - seeds, 0.0)
    leverage = np.einsum("mms->ms", weights) + (1 - np.einsum("ks,kms->ms", here, weights)) / by_seed
    return effects, weights, residuals, (here * (1 - leverage)).sum(axis=1), round(np.trace(inverse @ normal))


def _linked(here: np.ndarray) -> np.ndarray:
    reached = here @ here.T  # of booleans: a boolean matrix, so no power of it overflows
    for _ in range(len(here).bit_length()):
        reached = reached @ reached
    return reached


def _wild(values: np.ndarray) -> np.ndarray:
    """Rows that scatter far more than the others. By medians, as least squares spreads a wild run over its seed."""
    if len(values) < LEAST_WILD:
        return np.zeros(len(values), bool)
    around = values - np.nanmean(values, axis=1, keepdims=True)
    median = np.nanmedian if np.isnan(values).any() else np.median  # which is ten times as fast
    variances = _variances(around - median(around, axis=0))
    return variances > WILD * max(float(np.median(variances)), LEAST_VARIANCE)


def _variances(values: np.ndarray) -> np.ndarray:
    """(M,) sample variances of the runs there are; a third of the time of np.nanvar."""
    here = np.isfinite(values)
    n, filled = here.sum(axis=1), np.where(here, values, 0.0)
    away = np.where(here, filled - (filled.sum(axis=1) / n)[:, None], 0.0)
    return (away**2).sum(axis=1) / (n - 1)
