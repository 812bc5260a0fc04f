"""Which method is best on a pair, and which ones the seeds cannot tell from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from bench.report import blocks
from bench.report.frames import CellSummary, Results, percent
from bench.report.statistics import LEVEL, Design, designs

BOLD_RULE = (
    "Bold: largest mean of the pair, to the printed digit, among methods with all wanted seeds finished and equally "
    "many of them."
)
TEST_RULE = (
    "all methods held against it at once at 5 % (Tukey's studentized range, stepping down). Rows × seeds of a pair are "
    "a block design: what a seed does to all rows is removed, and the error is pooled over the rows, or a row's own "
    "where that is larger"
)
UNSEPARATED_RULE = f"not shown to be worse than the best of its pair, {TEST_RULE}"
SEPARATED_RULE = f"Every other method with two runs or more is shown to be worse than the best of its pair, {TEST_RULE}"


@dataclass(frozen=True)
class Ranking:
    """Cells are named by their position in Results.cells."""

    best: frozenset[int]
    unseparated: frozenset[int]
    seeds: Mapping[tuple[str, str], int]  # seeds of each cell that may be best, for pairs that have two such cells
    freedom: Mapping[tuple[str, str], int]  # degrees of freedom of the pooled error, for pairs with a comparison
    wild: frozenset[int]  # cells that scatter too much to be pooled with the others of their pair


def rank(results: Results) -> Ranking:
    """Rank the methods of each pair.

    The best is the largest mean among cells that are complete and have equally many seeds: where cells of a pair want
    different numbers, the commonest number counts (the larger of two equally common ones). A pair with a single such
    cell has no best. Unseparated from it is every other method that `blocks.separated` does not call worse. A method
    with missing runs is held against it, too, by the seeds it has; one with a single run is not. With one seed a cell
    nothing is tested, nothing marked.
    """
    columns: dict[tuple[str, str], list[int]] = {}
    for i, summary in enumerate(results.cells):
        if summary.cell.role == "method" and summary.last.complete:
            columns.setdefault(summary.column, []).append(i)
    fitted = designs(results)
    place = {id(summary): i for i, summary in enumerate(results.cells)}
    best: set[int] = set()
    unseparated: set[int] = set()
    wild: set[int] = set()
    seeds: dict[tuple[str, str], int] = {}
    freedom: dict[tuple[str, str], int] = {}
    for pair, members in columns.items():
        counts = Counter(results.cells[i].last.n for i in members)
        common = max(counts, key=lambda size: (counts[size], size))
        rivals = [i for i in members if results.cells[i].last.n == common]
        if len(rivals) < 2:
            continue
        seeds[pair] = common
        first = max(rivals, key=lambda i: results.cells[i].last.mean)
        best.add(first)
        design = fitted[pair]
        if common > 1:
            unseparated |= {i for i in rivals if design.row(results.cells[i]) is None}  # its seeds are not known
        if common > 1 and design.row(results.cells[first]) is not None:
            unseparated |= {place[id(summary)] for summary in _unseparated(design, results.cells[first])}
            freedom |= {pair: design.block.freedom} if design.block.freedom else {}
            wild |= {place[id(summary)] for summary, odd in zip(design.rows, design.block.wild, strict=True) if odd}
        # Equal to the printed digit is equal: no bold for a thousandth.
        top = percent(results.cells[first].last.mean)
        best |= {i for i in rivals if percent(results.cells[i].last.mean) == top}
    return Ranking(frozenset(best), frozenset(unseparated - best), seeds, freedom, frozenset(wild))


def _unseparated(design: Design, first: CellSummary) -> list[CellSummary]:
    """Methods of the pair that are not called worse than its best; over common seeds alone that may be behind."""
    methods = [i for i, summary in enumerate(design.rows) if summary.cell.role == "method"]
    differences, errors = (part[methods] for part in design.block.against(design.row(first)))
    worse = blocks.separated(differences, errors, design.block.freedom, LEVEL)
    return [design.rows[i] for i, apart in zip(methods, worse, strict=True) if not apart]
