"""Measured numbers beside published ones as tables: subtracted under the same protocol, only shown under another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from bench.cells import TableSpec
from bench.report.comparison import FAR_POINTS, Comparison, Entry
from bench.report.frames import CellSummary, Results, clean, percent, signed, written
from bench.report.markup import Line, Note, Table, Text
from bench.report.published import SOURCE_NOTES, Published, Reference, protocols
from bench.report.tables import (
    ABSENT,
    MIXED,
    PARTIAL_RULE,
    Footnotes,
    counted,
    mixed_notes,
    positions,
    sections,
    sign,
    what,
)

UNSTATED, UNCONFIRMED, FAR = "‡", "¶", "◊"
FAR_RULE = f"the difference exceeds both {FAR_POINTS:g} points and twice the sample standard deviation over seeds"
CAPTIONS = {
    "last": "last epoch on both sides",
    "best": "best epoch on both sides, selected on test data",
    "unstated": "the measured last epoch beside a statistic that the source does not state",
}


def published_table(results: Results, comparison: Comparison, number: int) -> Table:
    """One source under the table's own protocol: published, measured and difference where both have the cell."""
    footnotes, reference, position = Footnotes(), comparison.reference, positions(results)
    entries = {id(results.cells[i]): entry for i, entry in comparison.entries.items()}

    def triple(summary: CellSummary) -> list[Text]:
        entry, i = entries.get(id(summary)), position[id(summary)]
        if entry is None:
            return [Text("")] * 3
        difference = ABSENT if entry.difference is None else signed(entry.difference)
        return [
            Text(percent(entry.published.top1), _marks(entry.published, footnotes)),
            Text(written(entry.measured, with_std=False) or sign(summary), (MIXED,) if summary.mixed else (), cell=i),
            Text(difference, (FAR,) if entry.far else (), cell=i),
        ]

    lines, pairs = _covered(results, comparison.entries)
    rows = sections(lines, pairs, triple)
    return Table(
        name=f"published-{number}",
        caption=f"Against published numbers: {reference.source}. Top-1 accuracy (%): published / measured / "
        f"measured − published, {CAPTIONS[reference.statistic]} ({what(results.spec)}).",
        columns=tuple(
            (f"{teacher} → {student}", part)
            for teacher, student in pairs
            for part in ("published", "measured", "difference")
        ),
        sections=rows,
        notes=(*footnotes.notes(), *_notes(results, comparison)),
        span=3,
    )


def shown_table(results: Results, shown: Sequence[tuple[Reference, Mapping[int, Published]]]) -> Table:
    """Numbers of the same cells under other protocols, a section a source: marked, and never subtracted."""
    footnotes, parts, numbers = Footnotes(), [], []
    for reference, found in shown:
        seeds = {number.seeds for number in found.values()}
        (only,) = seeds if len(seeds) == 1 else (None,)
        words = f"{reference.protocol}, {reference.statistic_words}"
        mark = footnotes.mark(f"protocol {words}, {counted(only, 'run') if only else 'number of runs not stated'}")
        by_cell = {id(results.cells[i]): number for i, number in found.items()}

        def entry(summary: CellSummary, by_cell=by_cell, mark=mark) -> list[Text]:
            number = by_cell.get(id(summary))
            return [Text(percent(number.top1), (mark, *_marks(number, footnotes)))] if number else [Text("")]

        lines, _ = _covered(results, found)
        rows: list[Line] = [line for _, part in sections(lines, results.pairs, entry) for line in part]
        parts.append((f"{reference.source}: {words}", tuple(rows)))
        numbers += found.values()
    return Table(
        name="published-elsewhere",
        caption=f"Published under other protocols, for orientation only: top-1 accuracy (%) as printed. Their training "
        f"differs from that of this table, so nothing is subtracted ({what(results.spec)}).",
        columns=results.pairs,
        sections=tuple(parts),
        notes=(*footnotes.notes(), *_mark_notes(numbers)),
    )


def nothing_published(spec: TableSpec) -> str:
    """The sentence that stands where no comparison can."""
    with_numbers = protocols()
    if spec.protocol in with_numbers:
        return f"The published numbers under protocol {spec.protocol} are for none of this table's cells."
    return (
        f"No published numbers exist under protocol {clean(spec.protocol)}, so nothing is subtracted "
        f"(they exist under {', '.join(with_numbers)})."
    )


def _covered(
    results: Results, found: Mapping[int, object]
) -> tuple[list[tuple[CellSummary, ...]], list[tuple[str, str]]]:
    """The rows and the pairs that have any of these cells."""
    ids = {id(results.cells[i]) for i in found}
    lines = [line for line in results.lines if any(id(summary) in ids for summary in line)]
    covered = {results.cells[i].column for i in found}
    return lines, [pair for pair in results.pairs if pair in covered]


def _marks(published: Published, footnotes: Footnotes) -> tuple[str, ...]:
    return (
        *([footnotes.mark(published.note)] if published.note else []),
        *([UNSTATED] if published.statistic == "unstated" else []),
        *([] if published.confirmed else [UNCONFIRMED]),
    )


def _mark_notes(numbers: Iterable[Published], unstated: str = "") -> Iterable[Note]:
    numbers = list(numbers)
    if any(number.statistic == "unstated" for number in numbers):
        yield Note(UNSTATED, f"statistic not stated by its source: last or best epoch{unstated}.")
    if not all(number.confirmed for number in numbers):
        yield Note(UNCONFIRMED, "not confirmed in a repository or table of its own authors.")


def _notes(results: Results, comparison: Comparison) -> Iterable[Note]:
    entries = list(comparison.entries.values())
    published = [entry.published for entry in entries]
    yield from _mark_notes(published, _if_best(entries))
    yield from _far_notes(entries)
    yield from mixed_notes(results.cells[i] for i in comparison.entries)
    if any(entry.measured.n not in (0, entry.measured.wanted) for entry in entries):
        yield Note("", PARTIAL_RULE)
    if note := SOURCE_NOTES.get(comparison.reference.source):
        yield Note("", note)
    if seeds := sorted({number.seeds or 0 for number in published}):
        words = ", ".join(str(n) if n else "not stated" for n in seeds)
        yield Note("", f"Seeds behind the published numbers: {words}.")
    if comparison.other_data:
        yield Note("", f"Cells not compared, their runs did not use CIFAR-100 as published: {comparison.other_data}.")


def _if_best(entries: Iterable[Entry]) -> str:
    """What the differences would be if the unstated statistic were the best epoch."""
    shifts = [e.difference_best - e.difference for e in entries if None not in (e.difference, e.difference_best)]
    if not shifts:
        return "; set beside the measured last epoch"
    mean = signed(math.fsum(shifts) / len(shifts))
    return f"; set beside the measured last epoch. Beside the best epoch the differences would be {mean} in the mean"


def _far_notes(entries: Sequence[Entry]) -> Iterable[Note]:
    """How far apart the two are over all cells, and what the mark stands on."""
    differences = [entry.difference for entry in entries if entry.difference is not None]
    if not differences:
        return
    judged = [entry for entry in entries if entry.far is not None]
    if judged:
        both = ", beside the measured last and best epoch alike" if judged[0].published.statistic == "unstated" else ""
        far = sum(entry.far for entry in judged)
        of = f"of {counted(len(judged), 'cell')} with a deviation."
        # A mark that stands nowhere is not explained; that it stands nowhere is worth a sentence.
        yield Note(FAR, f"{FAR_RULE}{both}: {far} {of}") if far else Note("", f"No cell where {FAR_RULE}{both}, {of}")
    if unjudged := len(differences) - len(judged):
        yield Note("", f"One finished run has no deviation, so {counted(unjudged, 'difference')} could not be judged.")
    mean, size = (math.fsum(values) / len(differences) for values in (differences, map(abs, differences)))
    yield Note(
        "",
        f"Over {counted(len(differences), 'cell')}: mean difference {signed(mean)}, mean absolute difference "
        f"{percent(size)}.",
    )
