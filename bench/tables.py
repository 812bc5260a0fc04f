"""The printed tables: last epoch (the result), best epoch, against published numbers; and their notes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from bench.cells import STATES, TableSpec
from bench.comparison import Comparison, Entry
from bench.frames import CellSummary, Results, clean, done, percent, signed, written
from bench.markup import Line, Note, Table, Text
from bench.published import SOURCE_NOTES, protocols
from bench.ranking import Ranking

ABSENT = "—"
# What a cell without a finished run shows.
SIGNS = {
    "failed": "✗ failed",
    "blocked": "⊘ blocked",
    "running": "… running",
    "interrupted": "… interrupted",
    "missing": ABSENT,
}
UNSEPARATED, UNSTATED, MIXED, UNCONFIRMED = "†", "‡", "§", "¶"
PARTIAL_RULE = "(2/3): 2 of 3 wanted runs have finished."
NUMBERS_RULE = (
    f"Sample standard deviation (ddof 1) over seeds; a single run has none. {PARTIAL_RULE} Only finished "
    f"runs enter a mean. {ABSENT}: not started. Blank: not in this grid."
)
BOLD_RULE = (
    "Bold: largest mean of the pair among methods with all wanted seeds finished and equally many of them; "
    "other cells are not compared."
)
UNSEPARATED_RULE = (
    "not separated from the best: the two-sided 95 % t interval of the mean difference over common seeds "
    "holds 0, or fewer than two seeds are common. No correction for multiple comparisons."
)
HEADINGS = {"feature": "Feature-based", "logit": "Logit-based", "ours": "Ours"}
MOST_NAMED = 3  # runs, cells or commits named in one line; the CSV files have all


class Footnotes:
    """Numbers texts as they first come up; equal texts share a number. Remembers what each one is about."""

    def __init__(self) -> None:
        self._subjects: dict[str, dict[str, None]] = {}
        self._numbers: dict[str, str] = {}

    def mark(self, text: str, subject: str = "") -> str:
        self._subjects.setdefault(text, {}).update({subject: None} if subject else {})
        return self._numbers.setdefault(text, str(len(self._numbers) + 1))

    def notes(self) -> list[Note]:
        return [
            Note(self._numbers[text], f"{text} ({_some(list(subjects), 'runs.csv')})" if subjects else text)
            for text, subjects in self._subjects.items()
        ]


def last_table(results: Results, ranking: Ranking) -> Table:
    """The result: top-1 at the last epoch, the best methods, and why each gap is a gap."""
    footnotes, position = Footnotes(), {id(summary): i for i, summary in enumerate(results.cells)}

    def entry(summary: CellSummary) -> list[Text]:
        i = position[id(summary)]
        marks = sorted({footnotes.mark(text, run_id) for text, run_id in _troubles(summary)}, key=int)
        marks += [MIXED] if summary.mixed else []
        marks += [UNSEPARATED] if i in ranking.unseparated else []
        return [Text(written(summary.last) or SIGNS[summary.state], tuple(marks), bold=i in ranking.best)]

    sections = _sections(results.lines, results.pairs, entry)
    return Table(
        name="last",
        caption=f"Top-1 accuracy (%) at the last epoch, mean ± std over seeds ({what(results.spec)}).",
        columns=results.pairs,
        sections=sections,
        notes=(*footnotes.notes(), *_mixed_notes(results), *_legend(ranking)),
    )


def best_table(results: Results) -> Table:
    """Top-1 at each run's best epoch, chosen by looking at the test set, and by how much that flatters."""

    def entry(summary: CellSummary) -> list[Text]:
        return [Text(written(summary.best) or _sign(summary))]

    def gap(line: Iterable[CellSummary]) -> list[Text]:
        gaps = [gap for summary in line for gap in summary.gaps()]
        return [Text(signed(math.fsum(gaps) / len(gaps)) if gaps else "")]

    gap_rule = "Nothing is ranked here. best − last: mean over the finished runs of the row."
    notes = [Note("", f"{gap_rule} {PARTIAL_RULE}")]
    silent = sum(run.top1_best is None for run in done(results.runs) if run.in_table)
    if silent:
        notes.append(Note("", f"Finished runs without a recorded best epoch, left out here: {silent}."))
    return Table(
        name="best",
        caption="Top-1 accuracy (%) at each run's best epoch, selected on test data: optimistically biased "
        f"({what(results.spec)}).",
        columns=(*results.pairs, ("best − last", "")),
        sections=_sections(results.lines, results.pairs, entry, gap),
        notes=tuple(notes),
    )


def published_table(results: Results, comparison: Comparison, number: int) -> Table:
    """One source beside our runs: published, ours and difference where both have the cell."""
    footnotes, reference = Footnotes(), comparison.reference
    entries = {id(results.cells[i]): entry for i, entry in comparison.entries.items()}

    def triple(summary: CellSummary) -> list[Text]:
        entry = entries.get(id(summary))
        if entry is None:
            return [Text("")] * 3
        difference = ABSENT if entry.difference is None else signed(entry.difference)
        ours = written(entry.ours, with_std=False) or _sign(summary)
        return [Text(percent(entry.published.top1), _marks(entry, footnotes)), Text(ours), Text(difference)]

    lines = [line for line in results.lines if any(id(summary) in entries for summary in line)]
    covered = {summary.column for line in lines for summary in line if id(summary) in entries}
    pairs = [pair for pair in results.pairs if pair in covered]
    sections = _sections(lines, pairs, triple)
    return Table(
        name=f"published-{number}",
        caption=f"Against published numbers: {reference.source}. Top-1 accuracy (%): published / ours / "
        f"ours − published, {_statistic(reference.statistic)} ({what(results.spec)}).",
        columns=tuple(
            (f"{teacher} → {student}", part)
            for teacher, student in pairs
            for part in ("published", "ours", "difference")
        ),
        sections=sections,
        notes=tuple(_published_notes(comparison, footnotes)),
        span=3,
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


def footer(results: Results, now: datetime) -> list[str]:
    """What the table is made of: grid, protocol, runs by state, and what its finished runs ran on."""
    wanted = [run for run in results.runs if run.in_table]
    counts, finished = Counter(run.state for run in wanted), done(wanted)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "none"
    spec = results.spec
    lines = [
        f"Grid {spec.grid}, protocol {spec.protocol} version {spec.protocol_version}.",
        f"Runs: {states}; {len(wanted)} wanted.",
    ]
    if outside := len(results.runs) - len(wanted):
        lines.append(f"Runs known but not part of this table: {outside}.")
    seen = {
        "Data": (run.data for run in finished),
        "Python": (run.python for run in finished),
        "PyTorch": (run.torch for run in finished),
        "torchvision": (run.torchvision for run in finished),
        "Device": (run.device for run in finished),
        "Precision": (run.precision for run in finished),
        "Commit": (
            run.git_commit[:7] + (" (dirty)" if run.git_dirty else "") for run in finished if run.git_commit
        ),
    }
    for name, values in seen.items():
        if found := sorted(set(filter(None, values))):
            lines.append(f"{name}: {_some(found, 'runs.csv')}.")
    return [clean(line) for line in [*lines, f"Written {now:%Y-%m-%d %H:%M} UTC."]]


def what(spec: TableSpec) -> str:
    return f"grid {spec.grid}, protocol {spec.protocol} v{spec.protocol_version}"


def _sections(
    lines: Sequence[tuple[CellSummary, ...]],
    pairs: Sequence[tuple[str, str]],
    entries: Callable[[CellSummary], list[Text]],
    tail: Callable[[tuple[CellSummary, ...]], list[Text]] | None = None,
) -> tuple[tuple[str, tuple[Line, ...]], ...]:
    """The given rows under their group's heading; a column that a row has no cell for stays blank."""
    sections: dict[str, list[Line]] = {}
    for line in lines:
        head, at = line[0].cell, {summary.column: entries(summary) for summary in line}
        blanks = [Text("")] * len(at[head.teacher, head.student])
        row = [text for pair in pairs for text in at.get(pair, blanks)] + (tail(line) if tail else [])
        heading = HEADINGS.get(head.group, clean(head.group)) if head.role == "method" else ""
        sections.setdefault(heading, []).append(Line(clean(head.label), tuple(row)))
    return tuple((heading, tuple(rows)) for heading, rows in sections.items())


def _sign(summary: CellSummary) -> str:
    """For a number that is not there: the cell's state, or that its finished runs did not record it."""
    return ABSENT if summary.last.n else SIGNS[summary.state]


def _troubles(summary: CellSummary) -> Iterable[tuple[str, str]]:
    for run in summary.runs:
        if run.state in ("failed", "blocked"):
            yield f"{run.state}: {run.reason or 'no reason recorded'}", run.run_id


def _mixed_notes(results: Results) -> list[Note]:
    cells: dict[str, list[str]] = {}
    for summary in results.cells:
        if summary.mixed:
            name = f"{summary.cell.label} on {' → '.join(summary.column)}"
            cells.setdefault(summary.mixed, []).append(name)
    return [
        Note(MIXED, f"not one measurement, its runs mix {mixed}: {_some(names, 'table.csv')}.")
        for mixed, names in cells.items()
    ]


def _legend(ranking: Ranking) -> Iterable[Note]:
    """The rules, and only those that this table uses."""
    yield Note("", NUMBERS_RULE)
    if not ranking.seeds:
        yield Note("", "No pair has two methods with all wanted seeds finished: nothing is bold.")
        return
    yield Note("", BOLD_RULE)
    tested = sum(seeds > 1 for seeds in ranking.seeds.values())
    if tested:
        yield Note(UNSEPARATED, UNSEPARATED_RULE)
    if untested := len(ranking.seeds) - tested:
        where = f" on {untested} of {len(ranking.seeds)} pairs" if tested else ""
        yield Note("", f"One seed a cell{where}: nothing can be separated, bold is only the larger number.")


def _statistic(statistic: str) -> str:
    return {
        "last": "last epoch on both sides",
        "best": "best epoch on both sides, selected on test data",
        "unstated": "our last epoch beside a statistic that the source does not state",
    }[statistic]


def _marks(entry: Entry, footnotes: Footnotes) -> tuple[str, ...]:
    published = entry.published
    return (
        *([footnotes.mark(published.note)] if published.note else []),
        *([UNSTATED] if published.statistic == "unstated" else []),
        *([] if published.confirmed else [UNCONFIRMED]),
    )


def _published_notes(comparison: Comparison, footnotes: Footnotes) -> Iterable[Note]:
    yield from footnotes.notes()
    published = [entry.published for entry in comparison.entries.values()]
    if any(number.statistic == "unstated" for number in published):
        yield Note(
            UNSTATED, "statistic not stated by its source (last or best epoch); set beside our last epoch."
        )
    if not all(number.confirmed for number in published):
        yield Note(UNCONFIRMED, "not confirmed in a repository or table of its own authors.")
    if any(entry.ours.n not in (0, entry.ours.wanted) for entry in comparison.entries.values()):
        yield Note("", PARTIAL_RULE)
    if note := SOURCE_NOTES.get(comparison.reference.source):
        yield Note("", note)
    if seeds := sorted({number.seeds or 0 for number in published}):
        words = ", ".join(str(n) if n else "not stated" for n in seeds)
        yield Note("", f"Seeds behind the published numbers: {words}.")
    if comparison.other_data:
        yield Note(
            "", f"Cells not compared, their runs did not use CIFAR-100 as published: {comparison.other_data}."
        )


def _some(names: Sequence[str], rest_in: str) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more, see {rest_in}" if more > 0 else "")
