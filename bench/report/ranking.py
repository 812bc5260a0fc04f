"""Which method is best on a pair, and which ones paired seeds cannot tell from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from bench.report.frames import Results, percent
from bench.report.statistics import LEVEL, compare

BOLD_RULE = (
    "Bold: largest mean of the pair, to the printed digit, among methods with all wanted seeds finished and equally "
    "many of them; other cells are not compared."
)
UNSEPARATED_RULE = (
    "not separated from the best: two-sided t test of the differences to the best, paired over common seeds, at 5 % "
    "with Holm's correction for the number of methods compared with it (with a single one: the 95 % interval of the "
    "mean difference holds 0); or fewer than two seeds are common."
)


@dataclass(frozen=True)
class Ranking:
    """Cells are named by their position in Results.cells."""

    best: frozenset[int]
    unseparated: frozenset[int]
    seeds: Mapping[tuple[str, str], int]  # seeds of each cell compared, for pairs that have two such cells


def rank(results: Results) -> Ranking:
    """Rank the methods of each pair among cells that are complete and have equally many seeds.

    Means over different n are never compared: where cells of a pair want different numbers of seeds, the
    commonest number counts (the larger of two equally common ones). A pair with a single such cell has no
    best. The best is the largest mean; unseparated from it is every other cell whose paired t test against it,
    by Holm's correction over these cells, leaves them equal. Uncorrected, twelve equal methods with three seeds
    would have one called worse than the best on 60 % of pairs, with it on 10 % (by simulation; the choice of the
    best is not corrected for). With one seed a cell nothing is tested, nothing marked.
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
            unseparated |= _unseparated(results, first, [i for i in rivals if i != first])
        # Equal to the printed digit is equal: no bold for a thousandth.
        top = percent(results.cells[first].last.mean)
        best |= {i for i in rivals if percent(results.cells[i].last.mean) == top}
    return Ranking(frozenset(best), frozenset(unseparated - best), seeds)


def _unseparated(results: Results, first: int, others: list[int]) -> set[int]:
    found = {}
    for i in others:
        difference = compare(results.cells[first], results.cells[i])
        # Over common seeds alone the best of all seeds may be behind: then nothing says that it is better.
        found[i] = difference.p if difference and difference.mean > 0 else 1.0
    ordered = sorted(found, key=found.__getitem__)
    for place, i in enumerate(ordered):
        if found[i] >= (1 - LEVEL) / (len(ordered) - place):
            return set(ordered[place:])
    return set()
