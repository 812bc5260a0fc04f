"""The printed tables: last epoch (the result), over all pairs, best epoch; their notes, and the footer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from bench.cells import STATES, Cell, TableSpec
from bench.report.blocks import WILD
from bench.report.frames import CellSummary, Results, clean, done, signed, written
from bench.report.markup import Line, Note, Table, Text
from bench.report.ranking import BOLD_RULE, SEPARATED_RULE, UNSEPARATED_RULE, Ranking
from bench.report.statistics import GAP_RULE, PAIRS_INTERVAL_RULE, PAIRS_RULE, Aggregate, Interval
from bench.surroundings import sources
from bench.surroundings.commandline import counted

ABSENT = "—"
# What a cell without a finished run shows.
SIGNS = {
    "failed": "✗ failed",
    "blocked": "⊘ blocked",
    "running": "… running",
    "interrupted": "… interrupted",
    "missing": ABSENT,
}
UNSEPARATED, MIXED, OTHER_SOURCE = "†", "§", "‖"
PARTIAL_RULE = "(n/m): n of m wanted runs have finished."
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
            Note(self._numbers[text], text, some(list(subjects), "runs.csv"))
            for text, subjects in self._subjects.items()
        ]


def last_table(results: Results, ranking: Ranking) -> Table:
    """The result: top-1 at the last epoch, the best methods, and why each gap is a gap."""
    footnotes, position = Footnotes(), positions(results)

    def entry(summary: CellSummary) -> list[Text]:
        i = position[id(summary)]
        marks = sorted({footnotes.mark(text, run_id) for text, run_id in _troubles(summary)}, key=int)
        marks += [MIXED] if summary.mixed else []
        marks += [OTHER_SOURCE] if summary.other_source else []
        marks += [UNSEPARATED] if i in ranking.unseparated else []
        return [Text(written(summary.last) or SIGNS[summary.state], tuple(marks), i in ranking.best, i)]

    rows = sections(results.lines, results.pairs, entry)
    return Table(
        name="last",
        caption=f"Top-1 accuracy (%) at the last epoch, mean ± std over seeds ({what(results.spec)}).",
        columns=results.pairs,
        sections=rows,
        notes=(
            *footnotes.notes(),
            *mixed_notes(_shown(results)),
            *source_notes(results, _shown(results)),
            *_larger(results),
            *_legend(results, ranking),
        ),
    )


def best_table(results: Results) -> Table:
    """Top-1 at each run's best epoch, chosen by looking at the test set, and by how much that flatters each cell."""
    position = positions(results)
    gaps: dict[int, float] = {}

    def entry(summary: CellSummary) -> list[Text]:
        i = position[id(summary)]
        if cell_gaps := summary.gaps():
            gaps[i] = math.fsum(cell_gaps) / len(cell_gaps)
        marks = (*([MIXED] if summary.mixed else []), *([OTHER_SOURCE] if summary.other_source else []))
        return [
            Text(written(summary.best) or sign(summary), marks, cell=i),
            Text(signed(gaps[i]) if i in gaps else "", cell=i),
        ]

    rows = sections(results.lines, results.pairs, entry)
    notes = [
        Note("", "The epoch is chosen by the test accuracy that it is then reported with, so nothing is ranked here.")
    ]
    if gaps:
        each = sorted(gaps.values())
        mean = signed(math.fsum(each) / len(each))
        spread = f", from {signed(each[0])} to {signed(each[-1])}" if len(each) > 1 else ""
        notes.append(Note("", f"Best − last, mean over {counted(len(each), 'cell')}: {mean} points{spread}."))
    if any(0 < summary.best.n < summary.best.wanted for summary in results.cells):
        notes.append(Note("", PARTIAL_RULE))
    if silent := sum(run.top1_best is None for run in done(results.runs) if run.in_table):
        notes.append(Note("", f"Finished runs without a recorded best epoch, left out here: {silent}."))
    return Table(
        name="best",
        caption="Top-1 accuracy (%) at each run's best epoch, selected on test data: optimistically biased. "
        f"Best / best − last ({what(results.spec)}).",
        columns=tuple(
            (f"{teacher} → {student}", part) for teacher, student in results.pairs for part in ("best", "− last")
        ),
        sections=rows,
        notes=(*notes, *mixed_notes(results.cells), *source_notes(results, results.cells)),
        span=2,
    )


def looked_at_once(results: Results) -> list[str]:
    """Where no run was watched on the test set: that it is so, and what the best epoch is then; else []."""
    trained = [run for run in done(results.runs) if run.in_table and run.method != "checkpoint"]
    if not trained or any(run.validation is None for run in trained):
        return []
    lines = ["The test set was looked at once a run, after its last epoch: no epoch is selected on test data."]
    if gaps := [
        run.val_top1_best - run.val_top1_last
        for run in trained
        if run.val_top1_best is not None and run.val_top1_last is not None
    ]:
        sizes = sorted({run.validation for run in trained if run.validation})
        mean = signed(math.fsum(gaps) / len(gaps))
        lines.append(
            f"Accuracy during training was measured on {' or '.join(f'{size:,}' for size in sizes)} validation images, "
            f"held out of the training images. The best epoch, selected on validation images: best − last, mean over "
            f"{counted(len(gaps), 'run')}: {mean} points of top-1 on the same images. Its test accuracy is not known."
        )
    return lines


def aggregate_table(results: Results, aggregates: Sequence[Aggregate]) -> Table:
    """Each method over the pairs: its mean gain over the Student row, and the share of the teacher's lead it closes."""
    footnotes = Footnotes()
    by_heading: dict[str, list[Line]] = {}
    for row in aggregates:
        marks = (footnotes.mark(row.note),) if row.note else ()
        entries = (
            Text(f"{len(row.pairs)}/{len(results.pairs)}", marks),
            Text(signed(row.gain)),
            Text(interval(row.interval, signed)),
            Text(ABSENT if row.gap_closed is None else share(row.gap_closed)),
            Text(interval(row.gap_interval, share)),
        )
        by_heading.setdefault(heading("method", row.group), []).append(Line(clean(row.label), entries))
    rule = f"{PAIRS_RULE} {PAIRS_INTERVAL_RULE}" if any(row.interval for row in aggregates) else PAIRS_RULE
    return Table(
        name="pairs",
        caption=f"Over all pairs: gain over the Student row in points of top-1, last epoch ({what(results.spec)}).",
        columns=(("pairs", ""), ("gain", ""), ("interval", ""), ("gap closed", ""), ("interval", "")),
        sections=tuple((name, tuple(lines)) for name, lines in by_heading.items()),
        notes=(*footnotes.notes(), Note("", rule), Note("", GAP_RULE)),
    )


def interval(found: Interval | None, write: Callable[[float], str]) -> str:
    """How every interval is printed."""
    return ABSENT if found is None else f"[{write(found.low)}, {write(found.high)}]"


def share(value: float) -> str:
    """How every share is printed: whole percent, with a true minus."""
    return f"{100 * value:.0f} %".replace("-", "−").replace("−0 %", "0 %")


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
    if results.elsewhere:
        lines.append(f"Runs of other grids, protocols or versions in the same folder, not used: {results.elsewhere}.")
    seen = {
        "Data": (run.data for run in finished),
        "Python": (run.python for run in finished),
        "PyTorch": (run.torch for run in finished),
        "torchvision": (run.torchvision for run in finished),
        "Device": (run.device for run in finished),
        "Precision": (run.precision for run in finished),
        "Commit": (run.git_commit[:7] + (" (dirty)" if run.git_dirty else "") for run in finished if run.git_commit),
    }
    for name, values in seen.items():
        if found := sorted(set(filter(None, values))):
            lines.append(f"{name}: {some(found, 'runs.csv')}.")
    if once := looked_at_once(results):
        lines.append(once[0])
    if mixed := sum(bool(summary.mixed) for summary in results.cells):
        lines.append(f"Cells whose runs are not alike, marked {MIXED}: {mixed}.")
    if other := sum(bool(summary.other_source) for summary in results.cells):
        lines.append(f"Cells of another source of their method than today's, marked {OTHER_SOURCE}: {other}.")
    if untold := sum(run.source == sources.UNTOLD for run in finished):
        lines.append(f"Results that do not tell whether their method has changed since, and whose file has: {untold}.")
    return [clean(line) for line in [*lines, f"Written {now:%Y-%m-%d %H:%M} UTC."]]


def what(spec: TableSpec) -> str:
    return f"grid {spec.grid}, protocol {spec.protocol} v{spec.protocol_version}"


def only(results: Results, cells: Collection[Cell]) -> Results:
    """With the rows and pairs of these cells alone; `Results.cells`, and so their positions, are as before."""
    wanted = {(cell.label, cell.teacher, cell.student) for cell in cells}  # a report may group rows otherwise
    lines = (tuple(s for s in line if (s.cell.label, *s.column) in wanted) for line in results.lines)
    kept = tuple(line for line in lines if line)
    columns = {summary.column for line in kept for summary in line}
    return replace(results, lines=kept, pairs=tuple(pair for pair in results.pairs if pair in columns))


def positions(results: Results) -> Mapping[int, int]:
    """Position in `Results.cells` by id() of a summary."""
    return {id(summary): i for i, summary in enumerate(results.cells)}


def sections(
    lines: Sequence[tuple[CellSummary, ...]],
    pairs: Sequence[tuple[str, str]],
    entries: Callable[[CellSummary], list[Text]],
) -> tuple[tuple[str, tuple[Line, ...]], ...]:
    """The given rows under their group's heading; a column that a row has no cell for stays blank."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        head, at = line[0].cell, {summary.column: entries(summary) for summary in line}
        blanks = [Text("")] * len(at[head.teacher, head.student])
        row = [text for pair in pairs for text in at.get(pair, blanks)]
        found.setdefault(heading(head.role, head.group), []).append(Line(clean(head.label), tuple(row)))
    return tuple((name, tuple(rows)) for name, rows in found.items())


def heading(role: str, group: str) -> str:
    """Over a group of rows; "" over the two baselines."""
    return HEADINGS.get(group, clean(group)) if role == "method" else ""


def sign(summary: CellSummary) -> str:
    """For a number that is not there: the cell's state, or that its finished runs did not record it."""
    return ABSENT if summary.last.n else SIGNS[summary.state]


def mixed_notes(cells: Iterable[CellSummary]) -> list[Note]:
    """A note for each kind of mixture among these cells, naming some that have it."""
    named: dict[str, list[str]] = {}
    for summary in cells:
        if summary.mixed:
            name = f"{summary.cell.label} on {' → '.join(summary.column)}"
            named.setdefault(summary.mixed, []).append(name)
    return [
        Note(MIXED, f"not one measurement, its runs mix {mixed}: {some(names, 'table.csv')}.")
        for mixed, names in named.items()
    ]


def source_notes(results: Results, cells: Sequence[CellSummary]) -> list[Note]:
    """A note where one of `cells` is marked as of another source of its method, with the command that redoes it."""
    other = [run_id for summary in cells for run_id in summary.other_source]
    if not other:
        return []
    names = [f"{s.cell.label} on {' → '.join(s.column)}" for s in cells if s.other_source]
    begun = [run.run_id for run in results.runs if run.state != "missing"]
    redo = sources.redo(results.spec, other, begun, results.out)
    return [
        Note(
            OTHER_SOURCE,
            f"of another source of the method than today's (its file and what it imports from methods), in "
            f"{counted(len(set(other)), 'run')}: {some(names, 'runs.csv')}. To redo them: {clean(redo)}",
        )
    ]


def some(names: Sequence[str], rest_in: str) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more, see {rest_in}" if more > 0 else "")


def _larger(results: Results) -> Iterable[Note]:
    """What is not the student of the other rows, and by how much."""
    by_label: dict[str, list[float]] = {}
    for summary in results.cells:
        found = [run.larger_by for run in done(summary.runs) if run.larger_by is not None]
        by_label.setdefault(summary.cell.label, []).extend(found)
    for label, sizes in by_label.items():
        if sizes:
            low, high = (f"{size:.1f}" for size in (min(sizes), max(sizes)))
            span = low if low == high else f"{low} to {high}"
            yield Note("", f"{clean(label)} predicts with a network that is {span} % larger than the student.")


def _troubles(summary: CellSummary) -> Iterable[tuple[str, str]]:
    """(reason, run id) of each run that needs a person, or whose file does; equal but for the run's id is equal."""
    for run in summary.runs:
        if run.state in ("failed", "blocked") or "set aside" in run.reason:
            reason = run.reason.replace(run.run_id, "<run>") or "no reason recorded"
            yield f"{run.state}: {reason}", run.run_id


def _legend(results: Results, ranking: Ranking) -> Iterable[Note]:
    """The rules, and only those that this table uses."""
    shown, position = _shown(results), positions(results)
    places = {position[id(summary)] for summary in shown}
    if numbers := " ".join(_numbers(results, shown)):
        yield Note("", numbers)
    seeds = {pair: count for pair, count in ranking.seeds.items() if pair in results.pairs}
    if not seeds:
        if any(summary.last.n for summary in shown):
            yield Note("", "No pair has two methods with all wanted seeds finished: nothing is bold.")
        return
    if ranking.best & places:
        yield Note("", BOLD_RULE)
    tested = sum(count > 1 for count in seeds.values())
    if ranking.unseparated & places:
        yield Note(UNSEPARATED, f"{UNSEPARATED_RULE}{_freedom(ranking)}.")
    elif tested and not ranking.unseparated and ranking.best & places:
        yield Note("", f"{SEPARATED_RULE}{_freedom(ranking)}.")
    for i in sorted(ranking.wild & places):
        cell = results.cells[i].cell
        yield Note(
            "",
            f"{clean(cell.label)} on {cell.teacher} → {cell.student}: its seeds scatter more than {WILD**0.5:g} times "
            "as much as the other rows', so its error is its own and not pooled with theirs.",
        )
    if untested := len(seeds) - tested:
        where = f" on {untested} of {len(seeds)} pairs" if tested else ""
        yield Note("", f"One seed a cell{where}: nothing can be separated, bold is only the larger number.")


def _numbers(results: Results, shown: Sequence[CellSummary]) -> Iterable[str]:
    """How to read what stands in the cells."""
    if any(summary.last.std is not None for summary in shown):
        single = "; a single run has none" if any(summary.last.n == 1 for summary in shown) else ""
        yield f"Sample standard deviation (ddof 1) over seeds{single}."
    if any(0 < summary.last.n < summary.last.wanted for summary in shown):
        yield f"{PARTIAL_RULE} Only finished runs enter a mean."
    if any(summary.state == "missing" for summary in shown):
        yield f"{ABSENT}: not started."
    if len(shown) < len(results.lines) * len(results.pairs):
        yield "Blank: not in this grid."


def _shown(results: Results) -> list[CellSummary]:
    return [summary for line in results.lines for summary in line]


def _freedom(ranking: Ranking) -> str:
    """What the pooled errors are estimated from."""
    found = sorted(set(ranking.freedom.values()))
    if not found:
        return ""
    return f" ({found[0]}{f' to {found[-1]}' if len(found) > 1 else ''} degrees of freedom)"
