"""Which method is best on a pair, and which ones paired seeds cannot tell from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from bench.frames import CellSummary, Results, percent, score

# Student's t, quantile 0.975, for 1 to 30 degrees of freedom (any statistics textbook); then the normal one.
T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
Z975 = 1.96


@dataclass(frozen=True)
class Ranking:
    """Cells are named by their position in Results.cells."""

    best: frozenset[int]
    unseparated: frozenset[int]
    seeds: Mapping[tuple[str, str], int]  # seeds of each cell compared, for pairs that have two such cells


def t975(df: int) -> float:
    """Two-sided 95 % quantile of Student's t with `df` >= 1 degrees of freedom."""
    return T975[df - 1] if df <= len(T975) else Z975


def paired_interval(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[float, float] | None:
    """95 % t interval of the mean of a - b over common seeds; None with fewer than two of them."""
    difference = score([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())], 0)
    if difference.std is None:
        return None
    half = t975(difference.n - 1) * difference.std / math.sqrt(difference.n)
    return difference.mean - half, difference.mean + half


def rank(results: Results) -> Ranking:
    """Rank the methods of each pair among cells that are complete and have equally many seeds.

    Means over different n are never compared: where cells of a pair want different numbers of seeds, the
    commonest number counts (the larger of two equally common ones). A pair with a single such cell has no
    best. The best is the largest mean; unseparated from it is every other cell whose paired interval holds
    0, or that shares fewer than two seeds with it. With one seed a cell nothing is tested, nothing marked.
    """
    columns: dict[tuple[str, str], list[int]] = {}
    for i, summary in enumerate(results.cells):
        if summary.cell.role == "method" and summary.last.complete:
            columns.setdefault(summary.column, []).append(i)
    best: set[int] = set()
    unseparated: set[int] = set()
    seeds: dict[tuple[str, str], int] = {}
    for pair, members in columns.items():
        counts = Counter(results.cells[i].last.n for i in members)
        common = max(counts, key=lambda size: (counts[size], size))
        rivals = [i for i in members if results.cells[i].last.n == common]
        if len(rivals) < 2:
            continue
        seeds[pair] = common
        first = max(rivals, key=lambda i: results.cells[i].last.mean)
        best.add(first)
        if common > 1:
            unseparated |= {
                i for i in rivals if i != first and not _separated(results.cells[first], results.cells[i])
            }
        # Equal to the printed digit is equal: no bold for a thousandth.
        top = percent(results.cells[first].last.mean)
        best |= {i for i in rivals if percent(results.cells[i].last.mean) == top}
    return Ranking(frozenset(best), frozenset(unseparated - best), seeds)


def _separated(best: CellSummary, other: CellSummary) -> bool:
    interval = paired_interval(best.by_seed(), other.by_seed())
    return interval is not None and interval[0] > 0
