"""Measured numbers beside published ones: subtracted where protocol and data are the same, else only shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.report.frames import CellSummary, Results, Score, done
from bench.report.published import Published, Reference, all_references, references

PUBLISHED_DATA = "cifar100"  # every published number is for CIFAR-100, whole training set
FAR_POINTS, FAR_STDS = 0.5, 2.0  # a difference is far when it exceeds both
_ROUNDING = 1e-9  # of binary fractions: 71.16 - 70.66 is not more than 0.5


@dataclass(frozen=True)
class Entry:
    """A published number and the measured one of the same cell, protocol and data.

    Measured is the last epoch, or the best one where the source has that. Where the source does not say, it is the
    last, and `difference_best` is what the measured best epoch would give: the truth may be either.
    """

    published: Published
    measured: Score
    difference: float | None  # measured - published; None where there is nothing to subtract
    difference_best: float | None  # only for an unstated statistic
    far: bool | None  # beyond FAR_POINTS and FAR_STDS sample deviations; None where one run has no deviation


@dataclass(frozen=True)
class Comparison:
    reference: Reference
    entries: Mapping[int, Entry]  # by position in Results.cells
    other_data: int  # cells left out because their runs did not use the published data set


def compare(results: Results) -> list[Comparison]:
    """One comparison for each source under the table's protocol that has a number for one of its cells.

    Like statistic meets like: a source's last epoch the runs' last, its best their best. Cells trained on other data
    are counted and never subtracted.
    """
    comparisons = []
    for reference in references(results.spec.protocol):
        entries, other_data = {}, 0
        for i, summary in enumerate(results.cells):
            published = reference.find(summary.cell)
            if published is None:
                continue
            if not as_published(summary):
                other_data += 1
                continue
            entries[i] = _entry(published, summary)
        if entries or other_data:
            comparisons.append(Comparison(reference, entries, other_data))
    return comparisons


def shown_only(results: Results) -> list[tuple[Reference, Mapping[int, Published]]]:
    """Sources under other protocols, with their numbers for cells of this table by position: for orientation."""
    found = []
    for reference in all_references():
        if reference.protocol != results.spec.protocol:
            numbers = {i: reference.find(summary.cell) for i, summary in enumerate(results.cells)}
            if numbers := {i: number for i, number in numbers.items() if number}:
                found.append((reference, numbers))
    return found


def _entry(published: Published, summary: CellSummary) -> Entry:
    def minus(measured: Score) -> float | None:
        return None if measured.mean is None else measured.mean - published.top1

    if published.statistic == "best":
        return Entry(published, summary.best, minus(summary.best), None, _far(published, summary.best))
    far, best = _far(published, summary.last), None
    if published.statistic == "unstated":
        best = minus(summary.best)
        if far and best is not None:  # far whichever epoch was meant, and on the same side
            far = _far(published, summary.best) and (best > 0) == (minus(summary.last) > 0)
    return Entry(published, summary.last, minus(summary.last), best, far)


def _far(published: Published, measured: Score) -> bool | None:
    if measured.mean is None or measured.std is None:
        return None
    size = abs(measured.mean - published.top1) - _ROUNDING
    return size > FAR_POINTS and size > FAR_STDS * measured.std


def as_published(summary: CellSummary) -> bool:
    """Whether the finished runs of a cell used the data that published numbers are for."""
    return all(run.data in ("", PUBLISHED_DATA) for run in done(summary.runs))
