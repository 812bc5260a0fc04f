"""Our numbers beside published ones of the same protocol, like statistic beside like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.frames import CellSummary, Results, Score, done
from bench.published import Published, Reference, references

PUBLISHED_DATA = "cifar100"  # every published number is for CIFAR-100, whole training set


@dataclass(frozen=True)
class Entry:
    published: Published
    ours: Score  # last or best epoch, as the source has it
    difference: float | None  # ours - published; None where there is nothing to subtract


@dataclass(frozen=True)
class Comparison:
    reference: Reference
    entries: Mapping[int, Entry]  # by position in Results.cells
    other_data: int  # cells left out because their runs did not use the published data set


def compare(results: Results) -> list[Comparison]:
    """One comparison for each source under the table's protocol that has a number for one of its cells.

    A source's last-epoch number meets our last epoch, a best-epoch number our best; where the source does not
    say, our last. Numbers of another protocol, and cells trained on other data, are never subtracted.
    """
    comparisons = []
    for reference in references(results.spec.protocol):
        entries, other_data = {}, 0
        for i, summary in enumerate(results.cells):
            published = reference.find(summary.cell)
            if published is None:
                continue
            if not _same_data(summary):
                other_data += 1
                continue
            ours = summary.best if reference.statistic == "best" else summary.last
            entries[i] = Entry(published, ours, None if ours.mean is None else ours.mean - published.top1)
        if entries or other_data:
            comparisons.append(Comparison(reference, entries, other_data))
    return comparisons


def _same_data(summary: CellSummary) -> bool:
    return all(run.data in ("", PUBLISHED_DATA) for run in done(summary.runs))
