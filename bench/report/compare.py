"""Two results folders side by side, cell by cell: two machines, two commits, two protocols."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from scipy.special import stdtrit

from bench.cells import RunStatus
from bench.report import markup, tables
from bench.report.frames import CellSummary, Results, RunRow, Score, done, number, score, signed, written
from bench.report.markup import Item, Line, Note, Section, Table, Text
from bench.report.statistics import LEVEL, Interval
from bench.surroundings.commandline import counted

Key = tuple[str, str, str, str]  # role, label, teacher, student
MOST_LISTED = 20  # lines of a list on a terminal; compare.md has all
METRICS = (
    *("top1_last", "top1_best", "best_epoch", "top5_last", "test_loss_last"),
    *("val_top1_last", "val_top1_best"),  # of runs with a validation split
)
INTERVAL_RULE = (
    "paired 3: mean over 3 runs that both sides have (the same id is the same method, "
    "parameters, data, protocol, precision and seed), and Student's t interval of their differences. Welch 3, 3: the "
    "runs are not the same, so the interval is that of two independent samples. Both two-sided at 95 %, Student's t "
    "from SciPy, without correction for the number of cells. One run has no interval."
)


@dataclass(frozen=True)
class Side:
    """One folder: its name, what it holds, and the files behind it."""

    name: str
    results: Results
    runs: Mapping[str, RunStatus]


@dataclass(frozen=True)
class Difference:
    """Ours - theirs of one cell; `mean` is None where one side has nothing, `interval` also where one run is all."""

    mean: float | None
    interval: Interval | None
    how: str


@dataclass(frozen=True)
class Rerun:
    """A run that is done on both sides: {metric: (ours, theirs)} of what differs."""

    run_id: str
    differs: Mapping[str, tuple[object, object]]


def cells(side: Side) -> dict[Key, CellSummary]:
    """Cells by what they are; of a cell given twice the first counts."""
    found: dict[Key, CellSummary] = {}
    for summary in side.results.cells:
        found.setdefault(_key(summary), summary)
    return found


def difference(ours: CellSummary, theirs: CellSummary) -> Difference:
    """Over the runs that both have, where there are any; else between the two samples."""
    if ours.last.mean is None or theirs.last.mean is None:
        return Difference(None, None, "")
    mine, other = ({run.run_id: run.top1_last for run in done(summary.runs)} for summary in (ours, theirs))
    common = [run_id for run_id in mine if run_id in other]
    if common:
        found = score([mine[run_id] - other[run_id] for run_id in common], len(common))
        error, freedom = (None if found.std is None else found.std / math.sqrt(found.n)), found.n - 1
        mean, how = found.mean, f"paired {found.n}"
    else:
        mean, how = ours.last.mean - theirs.last.mean, f"Welch {ours.last.n}, {theirs.last.n}"
        error, freedom = _welch(ours.last, theirs.last)
    if error is None:
        return Difference(mean, None, how)
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Difference(mean, Interval(mean - half, mean + half, LEVEL, how), how)


def reruns(ours: Side, theirs: Side) -> list[Rerun]:
    """Every run that is done on both sides, in our order."""
    mine, other = ({run.run_id for run in done(side.results.runs)} for side in (ours, theirs))
    found = []
    for run in ours.results.runs:
        if run.run_id in mine & other:
            pair = [_metrics(side.runs[run.run_id]) for side in (ours, theirs)]
            differs = {name: (pair[0][name], pair[1][name]) for name in METRICS if pair[0][name] != pair[1][name]}
            found.append(Rerun(run.run_id, differs))
    return found


def sections(ours: Side, theirs: Side) -> tuple[Section, ...]:
    """The comparison in printing order."""
    return (
        Section("", (_sides(ours, theirs),)),
        Section("Cell by cell", (_cells_table(ours, theirs),), _only(ours, theirs)),
        Section("The same runs on both sides", items=_rerun_items(reruns(ours, theirs))),
    )


def names(ours: Side, theirs: Side) -> tuple[str, str]:
    """What the columns are called: the ends of the two folders' names, as long as it takes to tell them apart."""
    parts = [
        tuple(part for part in side.name.split("/") if part not in ("", ".")) or (side.name,) for side in (ours, theirs)
    ]
    for length in range(1, max(map(len, parts)) + 1):
        left, right = ("/".join(part[-length:]) for part in parts)
        if left != right:
            return left, right
    return "first", "second"


def markdown(ours: Side, theirs: Side, now: datetime) -> str:
    """compare.md."""
    parts = [f"# Comparison: {markup.md(ours.name)} beside {markup.md(theirs.name)}"]
    for section in sections(ours, theirs):
        parts += [f"## {section.heading}"] if section.heading else []
        parts += map(markup.markdown, section.tables)
        parts += [markup.markdown_list(section.items)] if section.items else []
    return "\n\n".join([*parts, f"Written {now:%Y-%m-%d %H:%M} UTC."]) + "\n"


def terminal(ours: Side, theirs: Side, width: int | None = None) -> str:
    parts = []
    for section in sections(ours, theirs):
        parts += [markup.plain(table, width) for table in section.tables]
        items = section.items[:MOST_LISTED]
        if more := len(section.items) - len(items):
            items = (*items, Item("", f"and {more} more, see compare.md"))
        parts += [f"{section.heading}:\n{markup.plain_list(items, width)}"] if items else []
    return "\n\n".join(parts)


def _welch(a: Score, b: Score) -> tuple[float | None, float]:
    """(standard error, degrees of freedom) of the difference of two means, after Welch and Satterthwaite."""
    if a.std is None or b.std is None:
        return None, 0.0
    parts = [(one.std**2 / one.n, one.n - 1) for one in (a, b)]
    square = sum(part for part, _ in parts)
    return math.sqrt(square), square**2 / sum(part**2 / n for part, n in parts) if square else 1.0


def _metrics(status: RunStatus) -> dict[str, object]:
    metrics = status.result.get("metrics") if isinstance(status.result, dict) else None
    return {name: number(metrics.get(name)) if isinstance(metrics, dict) else None for name in METRICS}


def _sides(ours: Side, theirs: Side) -> Table:
    """What the two sides are, and where they differ."""
    left, right = (_facts(side) for side in (ours, theirs))
    lines = []
    for name in left:
        alike = name in ("Folder", "Runs") or left[name] == right[name]
        lines.append(Line(name, (Text(left[name]), Text(right[name]), Text("" if alike else "differs"))))
    if other := _other_sources(ours, theirs):
        lines.append(Line("Method sources", (Text(""), Text(""), Text(f"differ: {', '.join(other)}"))))
    notes = []
    if left["Protocol"] != right["Protocol"]:
        notes.append(Note("", "The protocols differ: no difference here says anything about machines or code."))
    return Table(
        name="sides",
        caption="What is compared.",
        columns=(*((name, "") for name in names(ours, theirs)), ("", "")),
        sections=(("", tuple(lines)),),
        notes=tuple(notes),
        corner="",
    )


def _facts(side: Side) -> dict[str, str]:
    results, spec = side.results, side.results.spec
    finished = done(run for run in results.runs if run.in_table)
    wanted = sum(run.in_table for run in results.runs)

    def seen(values: Iterable[str]) -> str:
        return tables.some(sorted(set(filter(None, values))), "runs.csv") or tables.ABSENT

    return {
        "Folder": side.name,
        "Grid": spec.grid,
        "Protocol": f"{spec.protocol} v{spec.protocol_version}",
        "Runs": f"{len(finished)} done of {wanted}",
        "Data": seen(run.data for run in finished),
        "Precision": seen(run.precision for run in finished),
        "Python": seen(run.python for run in finished),
        "PyTorch": seen(run.torch for run in finished),
        "torchvision": seen(run.torchvision for run in finished),
        "Device": seen(run.device for run in finished),
        "Commit": seen(_commit(run) for run in finished),
    }


def _commit(run: RunRow) -> str:
    return run.git_commit[:7] + (" (dirty)" if run.git_dirty else "") if run.git_commit else ""


def _other_sources(ours: Side, theirs: Side) -> list[str]:
    """Methods on both sides whose sources are not the same: their digests, else, in older results, their files."""
    runs = [[run for run in done(side.results.runs) if run.method_sha256] for side in (ours, theirs)]
    silent = {run.method for side in runs for run in side if not run.method_source}
    left, right = ({}, {})
    for found, side in zip((left, right), runs, strict=True):
        for run in side:
            said = run.method_sha256 if run.method in silent else run.method_source
            found.setdefault(run.method, set()).add(said)
    return sorted(method for method in left.keys() & right.keys() if left[method] != right[method])


def _cells_table(ours: Side, theirs: Side) -> Table:
    """Every cell that both sides have, a section a pair."""
    left, right = cells(ours), cells(theirs)
    by_pair: dict[str, list[Line]] = {}
    found = []
    for summary in (summary for line in ours.results.lines for summary in line):
        other = right.get(_key(summary))
        if other and left[_key(summary)] is summary:
            found.append(difference(summary, other))
            by_pair.setdefault(" → ".join(summary.column), []).append(_line(summary, other, found[-1]))
    order = [" → ".join(pair) for pair in ours.results.pairs]
    return Table(
        name="cells",
        caption="Top-1 accuracy (%) at the last epoch, mean ± std over seeds.",
        columns=(*((name, "") for name in names(ours, theirs)), ("diff", ""), ("interval", ""), ("how", "")),
        sections=tuple((pair, tuple(by_pair[pair])) for pair in order if pair in by_pair),
        notes=(
            Note("", "diff: {} − {}.".format(*names(ours, theirs))),
            *_cells_notes(found, [*left.values(), *right.values()]),
        ),
    )


def _key(summary: CellSummary) -> Key:
    cell = summary.cell
    return cell.role, cell.label if cell.role == "method" else "", cell.teacher, cell.student


def _line(ours: CellSummary, theirs: CellSummary, change: Difference) -> Line:
    entries = [
        Text(written(summary.last) or tables.SIGNS[summary.state], (tables.MIXED,) if summary.mixed else ())
        for summary in (ours, theirs)
    ]
    apart = change.interval is not None and not change.interval.low <= 0 <= change.interval.high
    return Line(
        ours.cell.label,
        (
            *entries,
            Text(tables.ABSENT if change.mean is None else signed(change.mean), bold=apart),
            Text(tables.interval(change.interval, signed)),
            Text(change.how),
        ),
    )


def _cells_notes(found: list[Difference], summaries: list[CellSummary]) -> Iterable[Note]:
    means = [change.mean for change in found if change.mean is not None]
    if means:
        size = math.fsum(map(abs, means)) / len(means)
        mean = signed(math.fsum(means) / len(means))
        yield Note(
            "",
            f"Over {counted(len(means), 'cell')}: mean difference {mean}, mean absolute difference {size:.2f}.",
        )
    intervals = [change.interval for change in found if change.interval]
    if intervals:
        apart = sum(not interval.low <= 0 <= interval.high for interval in intervals)
        yield Note(
            "",
            f"Bold: the interval leaves out 0: {apart} of {len(intervals)}; without any real difference about "
            f"{(1 - LEVEL) * len(intervals):.1f} would.",
        )
    yield Note("", INTERVAL_RULE)
    yield from tables.mixed_notes(summaries)


def _only(ours: Side, theirs: Side) -> tuple[Item, ...]:
    left, right = cells(ours), cells(theirs)
    items = []
    mine, other = names(ours, theirs)
    for words, here, there in ((f"only {mine}", left, right), (f"only {other}", right, left)):
        rows: dict[str, list[str]] = {}
        for key, summary in here.items():
            if key not in there:
                rows.setdefault(summary.cell.label, []).append(" → ".join(summary.column))
        items += [Item(words, f"{label} on {', '.join(pairs)}") for label, pairs in rows.items()]
    return tuple(items)


def _rerun_items(found: list[Rerun]) -> tuple[Item, ...]:
    if not found:
        return (Item("", "No run is done on both sides."),)
    differ = [rerun for rerun in found if rerun.differs]
    equal = len(found) - len(differ)
    items = [
        Item(
            "",
            f"Done on both sides: {counted(len(found), 'run')}. Equal in every metric, the test loss to its "
            f"last digit: {equal}. Different: {len(differ)}.",
        )
    ]
    for rerun in differ:
        words = [f"{name} {_value(a)} / {_value(b)}{_by(a, b)}" for name, (a, b) in rerun.differs.items()]
        items.append(Item("", f"{rerun.run_id}: {', '.join(words)}"))
    return tuple(items)


def _value(value: object) -> str:
    return tables.ABSENT if value is None else f"{value:.6g}"


def _by(ours: object, theirs: object) -> str:
    return "" if ours is None or theirs is None else f" ({ours - theirs:+.2g})".replace("-", "−")
