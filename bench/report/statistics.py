"""Statistics for few seeds: differences within a pair as in a block design, means over pairs with a bootstrap.

Seeds are paired (one seed is the same initial weights, data order and augmentation for every method of a pair), and
a pair's teacher is one run. So a pair's rows and seeds are a block design (`bench.report.blocks`), and the teacher is
a constant. With one seed there is no interval, and nothing is separated. Student's t and the normal distribution are
SciPy's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.special import ndtr, stdtr, stdtrit

from bench.report import blocks
from bench.report.blocks import Block
from bench.report.frames import CellSummary, Results

LEVEL = 0.95
RESAMPLES = 10_000
SEED = 20250513  # of the resampling: the same runs always give the same interval

GAIN_RULE = (
    "Gain: a row minus the Student row, in points. Its 95 % interval is Dunnett's, for all methods of the pair at once,"
    " and its error pooled over the pair's rows. The teacher is one run, taken as it is. One seed has no interval."
)
PAIRS_RULE = (
    "Over pairs: each pair weighs the same, and only pairs count where the method and the Student row have all wanted "
    "seeds."
)
PAIRS_INTERVAL_RULE = (
    f"95 % intervals by a bootstrap stratified by pair (NumPy, {RESAMPLES:,} resamples of seeds, method and "
    "Student row together; n − 1 draws of n seeds, and percentiles widened from the normal to Student's t, as plain "
    "ones are too narrow for few seeds); a t interval where there is one pair or too few seeds to resample."
)
GAP_RULE = (
    "Share of the gap closed: sum of gains / sum of (teacher − Student) over the pairs whose teacher is above the "
    "Student row; 100 % is the teacher, more is above it."
)


@dataclass(frozen=True)
class Interval:
    """Two-sided; of a mean difference in points, or of a share."""

    low: float
    high: float
    level: float
    how: str  # "paired t, 3 seeds" or "stratified bootstrap, 10,000 resamples"


@dataclass(frozen=True)
class Gain:
    """Mean of one row minus that of another, in points."""

    mean: float
    seeds: int  # that both rows have
    error: float | None  # standard error; None with one seed
    freedom: float  # degrees of freedom of `error`
    how: str  # "3 seeds, 24 degrees of freedom"
    width: float | None = None  # half of `interval` in standard errors; None is Student's t for this difference alone

    @property
    def interval(self) -> Interval | None:
        if self.error is None:
            return None
        half = self.error * (_quantile(self.freedom) if self.width is None else self.width)
        return Interval(self.mean - half, self.mean + half, LEVEL, self.how)

    def among(self, comparisons: int) -> Gain:
        """The same with the interval it has as one of so many at once, after Bonferroni."""
        width = None if self.error is None else float(stdtrit(self.freedom, 1 - (1 - LEVEL) / 2 / comparisons))
        return replace(self, width=width)

    @property
    def p(self) -> float:
        """Two-sided, of this difference alone; 1 with one seed. Not for print: no stars."""
        return 1.0 if self.error is None else float(2 * stdtr(self.freedom, -abs(self.mean) / self.error))


@dataclass(frozen=True)
class Design:
    """The rows of one pair as a block design: every method, and the Student row, with at least two finished runs.

    The Student row belongs to it: it has the same seeds, and its run differs from a method's in the loss alone. Were it
    to scatter more, its own variance would count, as any row's. The Teacher row does not: it is one fixed network.
    """

    rows: tuple[CellSummary, ...]
    block: Block | None  # None without rows

    def row(self, summary: CellSummary) -> int | None:
        return next((i for i, own in enumerate(self.rows) if own is summary), None)

    def compare(self, ours: CellSummary, other: CellSummary) -> Gain | None:
        """`ours` - `other`; a teacher is one run and the same for every seed.

        None where a cell is unfinished (the runs still to come may differ from those that are done) or no seed is
        common.
        """
        if not (ours.last.complete and other.last.complete):
            return None
        if ours.cell.role == "teacher" or other.cell.role == "teacher":
            return self._against_constant(ours, other)
        table = _paired(ours, other)
        if not len(table):
            return None
        i, j = self.row(ours), self.row(other)
        if i is not None and j is not None:
            differences, errors = self.block.against(i)
            if np.isfinite(errors[j]):
                how = f"{_seeds(len(table))}, {_freedom(self.block.freedom)}"
                mean = round(float(differences[j]), 9)  # ties are ties
                return Gain(mean, len(table), float(errors[j]), self.block.freedom, how)
        return Gain(float((table[:, 0] - table[:, 1]).mean()), len(table), None, 0, _seeds(len(table)))

    def _against_constant(self, ours: CellSummary, other: CellSummary) -> Gain:
        """The seeds' own effects count here: another set of seeds would shift a row, and not the constant."""
        row = other if ours.cell.role == "teacher" else ours
        mean, i = round(ours.last.mean - other.last.mean, 9), self.row(row)
        if i is None:
            return Gain(mean, row.last.n, None, 0, _seeds(row.last.n))
        error = max(math.sqrt(self.block.spreads[i] / row.last.n), blocks.LEAST_ERROR)
        how = f"{_seeds(row.last.n)} against one teacher run, {_freedom(self.block.spread_freedom)}"
        return Gain(mean, row.last.n, error, self.block.spread_freedom, how)


@dataclass(frozen=True)
class Aggregate:
    """One method over the pairs on which it and the Student row are complete.

    Pairs are taken as independent; those with the same student network share its Student runs.
    """

    label: str
    group: str
    pairs: tuple[tuple[str, str], ...]
    gain: float  # mean over `pairs` of the gain over the Student row, in points
    interval: Interval | None
    gap_closed: float | None  # 1 is the whole gap; None where no pair has one
    gap_interval: Interval | None
    note: str  # what limits the row, in words; "" if nothing
    ranked: bool  # False where its pairs are not those of the rows with the most: not to be ranked against these


def designs(results: Results) -> dict[tuple[str, str], Design]:
    """The design of each pair."""
    columns: dict[tuple[str, str], dict[int, dict[int, float]]] = {pair: {} for pair in results.pairs}
    for i, summary in enumerate(results.cells):
        if summary.cell.role != "teacher" and len(runs := summary.by_seed()) > 1:
            columns[summary.column][i] = runs
    found = {}
    for pair, rows in columns.items():
        seeds = sorted(set().union(*rows.values()))
        values = np.array([[runs.get(seed, math.nan) for seed in seeds] for runs in rows.values()])
        found[pair] = Design(tuple(results.cells[i] for i in rows), blocks.fit(values) if rows else None)
    return found


def gains(results: Results) -> dict[int, Gain]:
    """Gain over the Student row of the same pair, by position in Results.cells; cells that have none are left out.

    The methods of a pair are held against the Student row at once, so their intervals are Dunnett's. The pair's Teacher
    row is held against it by itself.
    """
    students, fitted = _by_column(results, "student"), designs(results)
    found = {}
    for i, summary in enumerate(results.cells):
        student = students.get(summary.column)
        if student and summary.cell.role != "student":
            found[i] = fitted[summary.column].compare(summary, student)
    found = {i: gain for i, gain in found.items() if gain}
    methods = [i for i, gain in found.items() if gain.error is not None and results.cells[i].cell.role == "method"]
    family = Counter(results.cells[i].column for i in methods)
    for i in methods:
        width = blocks.dunnett(family[results.cells[i].column], found[i].freedom, LEVEL)
        found[i] = replace(found[i], width=width)
    return found


def aggregate(results: Results) -> list[Aggregate]:
    """A row for each method that is complete on a pair whose Student row is, in printing order."""
    students, teachers = _by_column(results, "student"), _by_column(results, "teacher")
    bootstrap = Bootstrap()
    rows = []
    for line in results.lines:
        if line[0].cell.role != "method":
            continue
        paired = {}
        for summary in line:
            student = students.get(summary.column)
            if student and summary.last.complete and student.last.complete and len(both := _paired(summary, student)):
                paired[summary.column] = both
        if paired:
            rows.append(_aggregate(line[0], paired, teachers, bootstrap, len(results.pairs)))
    sets = Counter(frozenset(row.pairs) for row in rows)
    most = max(sets, key=lambda pairs: (len(pairs), sets[pairs]), default=frozenset())
    return [row if frozenset(row.pairs) == most else _unranked(row) for row in rows]


class Bootstrap:
    """Stratified bootstrap of a ratio of sums over strata; a stratum is the seeds of one pair.

    The plain percentile bootstrap is far too narrow for strata this small: with three seeds on each of six pairs its
    95 % interval holds the truth in about 85 % of all cases. Two known corrections bring that to 94 %: n - 1 of a
    stratum's n seeds are drawn, which makes the variance unbiased (Rao and Wu, JASA 83, 1988), and the percentiles
    taken are as far out as Student's t is for the seeds at hand (Hesterberg, The American Statistician 69, 2015).
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], np.ndarray] = {}

    def interval(self, above: Sequence[np.ndarray], below: Sequence[np.ndarray]) -> Interval | None:
        """Of sum of stratum means of `above` / sum of stratum means of `below`, seeds resampled together.

        None where a stratum has a single seed, or where the seeds cannot tell the denominator from 0. A t interval of
        the linearised ratio where there is one stratum, or so few resamples that they do not reach the level.
        """
        sizes = [len(stratum) for stratum in above]
        if min(sizes) < 2:
            return None
        t = _quantile(sum(sizes) - len(sizes))
        tail = float(ndtr(-t))
        log_rarest = -sum((n - 1) * math.log(n) for n in sizes)  # the same seed drawn throughout, in every stratum
        if len(sizes) == 1 or log_rarest > math.log(tail):
            return _linearised(above, below, t)
        strata = enumerate(zip(above, below, strict=True))
        sums = sum(self._draws(i, len(pair[0])) @ np.column_stack(pair) for i, pair in strata)
        numerator, denominator = sums[:, 0], sums[:, 1]
        if denominator.min() <= 0:
            return None
        low, high = np.quantile(numerator / denominator, [tail, 1 - tail])
        return Interval(float(low), float(high), LEVEL, f"stratified bootstrap, {RESAMPLES:,} resamples")

    def _draws(self, stratum: int, n: int) -> np.ndarray:
        """(RESAMPLES, n) weights of a stratum's seeds, adding up to 1; the same for every row: fair, and fast."""
        if (stratum, n) not in self._kept:
            drawn = np.random.default_rng([SEED, stratum]).integers(n, size=(RESAMPLES, n - 1))
            flat = (drawn + n * np.arange(RESAMPLES)[:, None]).ravel()
            self._kept[stratum, n] = np.bincount(flat, minlength=RESAMPLES * n).reshape(RESAMPLES, n) / (n - 1)
        return self._kept[stratum, n]


def _linearised(above: Sequence[np.ndarray], below: Sequence[np.ndarray], t: float) -> Interval | None:
    total = sum(stratum.mean() for stratum in below)
    if total - t * _error(below) <= 0:
        return None
    ratio = sum(stratum.mean() for stratum in above) / total
    half = t * _error([top - ratio * bottom for top, bottom in zip(above, below, strict=True)]) / total
    seeds = sum(map(len, above))
    how = f"paired t, {seeds} seeds" if len(above) == 1 else f"stratified t, {seeds} seeds on {len(above)} pairs"
    return Interval(float(ratio - half), float(ratio + half), LEVEL, how)


def _error(strata: Sequence[np.ndarray]) -> float:
    """Standard error of the sum of the strata's means."""
    return math.sqrt(sum(stratum.var(ddof=1) / len(stratum) for stratum in strata))


def _aggregate(
    head: CellSummary,
    paired: dict[tuple[str, str], np.ndarray],
    teachers: dict[tuple[str, str], CellSummary],
    bootstrap: Bootstrap,
    columns: int,
) -> Aggregate:
    """`paired`: for each pair, (n, 2) accuracies of method and Student row by seed."""
    gained = {pair: table[:, 0] - table[:, 1] for pair, table in paired.items()}
    gain = sum(stratum.mean() for stratum in gained.values()) / len(gained)
    interval = bootstrap.interval(list(gained.values()), [np.ones(len(stratum)) for stratum in gained.values()])

    known = [pair for pair in paired if pair in teachers and teachers[pair].last.complete]
    gaps = {pair: teachers[pair].last.mean - paired[pair][:, 1] for pair in known}
    gaps = {pair: gap for pair, gap in gaps.items() if gap.mean() > 0}
    closed = closed_interval = None
    if gaps:
        above, below = [gained[pair] for pair in gaps], list(gaps.values())
        closed = float(sum(stratum.mean() for stratum in above) / sum(stratum.mean() for stratum in below))
        closed_interval = bootstrap.interval(above, below)

    single = sum(len(table) == 1 for table in paired.values())
    notes = [
        f"{len(paired)} of {columns} pairs" if len(paired) < columns else "",
        f"one seed on {_pairs(single)}: no interval" if single else "",
        f"teacher unfinished on {_pairs(len(paired) - len(known))}" if len(known) < len(paired) else "",
        f"teacher not above the Student row on {_pairs(len(known) - len(gaps))}" if len(gaps) < len(known) else "",
        "gap too small for an interval" if gaps and not (single or closed_interval) else "",
    ]
    note = "; ".join(filter(None, notes))
    cell = head.cell
    return Aggregate(cell.label, cell.group, tuple(paired), float(gain), interval, closed, closed_interval, note, True)


def _unranked(row: Aggregate) -> Aggregate:
    return replace(row, ranked=False, note=f"{row.note}; not ranked with the rows that have other pairs".lstrip("; "))


def _by_column(results: Results, role: str) -> dict[tuple[str, str], CellSummary]:
    return {summary.column: summary for summary in reversed(results.cells) if summary.cell.role == role}


def _paired(ours: CellSummary, other: CellSummary) -> np.ndarray:
    """(n, 2) last-epoch accuracies by common seed, in the order of the seeds."""
    mine, theirs = ours.by_seed(), other.by_seed()
    return np.array([(mine[seed], theirs[seed]) for seed in sorted(mine.keys() & theirs.keys())]).reshape(-1, 2)


@cache
def _quantile(freedom: float) -> float:
    """Two-sided quantile of Student's t at LEVEL."""
    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def _seeds(n: int) -> str:
    return "one seed" if n == 1 else f"{n} seeds"


def _freedom(n: float) -> str:
    return "1 degree of freedom" if n == 1 else f"{n:.3g} degrees of freedom"


def _pairs(n: int) -> str:
    return f"{n} pair" if n == 1 else f"{n} pairs"
