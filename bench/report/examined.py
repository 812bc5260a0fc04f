"""What `bench.examine` learned from the weights of finished runs, as columns that a report shows on request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bench.report.frames import CellSummary, Results, RunRow, done, score, written
from bench.report.markup import Note, Section, Table, Text
from bench.report.tables import PARTIAL_RULE, positions, sections, sign, what
from zoo.errors import choose


@dataclass(frozen=True)
class Column:
    """A quantity of a run: its caption, how it is to be read, and in what unit it is printed."""

    caption: str
    rule: str
    unit: float = 1.0
    spread: bool = True  # a size is the same for every seed


FIDELITY = "On the test images. A method that trains its teacher further is held against the teacher it began with."
SIZE = "Of the network that is tested; what a method adds for training only is not in it."
COLUMNS: Mapping[str, Column] = {
    "train_top1": Column(
        "Top-1 accuracy (%) on the training images", "On the run's own training images, not augmented."
    ),
    "agreement": Column("Top-1 agreement with the teacher (%): both name the same class", FIDELITY),
    "kl": Column("KL(teacher || student) of the predicted probabilities (nats, temperature 1)", FIDELITY),
    "ece": Column(
        "Expected calibration error (%), 15 bins of equal width",
        "On the test images; lower is better. As Guo et al., ICML 2017.",
    ),
    "parameters": Column("Parameters (millions)", SIZE, 1e6, spread=False),
    "macs": Column("Multiply-accumulates for one image (millions)", SIZE, 1e6, spread=False),
}


def chosen(text: str) -> tuple[str, ...]:
    """The columns that `--columns` names, each once; "all" is all of them."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    if names == ["all"]:
        return tuple(COLUMNS)
    return tuple(dict.fromkeys(choose("column of --columns", name, [*COLUMNS, "all"]) for name in names))


def wanted(results: Results, columns: Iterable[str]) -> tuple[Section, ...]:
    """A section with a table for each of the columns; none where none is asked for."""
    made = tuple(_table(results, name) for name in columns)
    return (Section("Beyond accuracy", made),) if made else ()


def _table(results: Results, name: str) -> Table:
    column, position = COLUMNS[name], positions(results)
    unknown = 0

    def entry(summary: CellSummary) -> list[Text]:
        nonlocal unknown
        runs = done(summary.runs)
        values = [getattr(run, name) for run in runs]
        unknown += sum(value is None for run, value in zip(runs, values, strict=True) if expected(run, name))
        found = score((None if value is None else value / column.unit for value in values), len(summary.runs))
        return [Text(written(found, with_std=column.spread) or sign(summary), cell=position[id(summary)])]

    rows = sections(results.lines, results.pairs, entry)
    notes = [Note("", column.rule)]
    if unknown:
        notes.append(Note("", f"Finished runs that are not examined: {unknown}. python -m bench.examine does it."))
    if any("/" in text.body for _, lines in rows for line in lines for text in line.entries):
        notes.append(Note("", PARTIAL_RULE))
    return Table(name, f"{column.caption} ({what(results.spec)}).", results.pairs, rows, tuple(notes))


def expected(run: RunRow, name: str) -> bool:
    """Whether a run has such a number at all: one without a teacher agrees with none."""
    return bool(run.teacher) or name not in ("agreement", "kl")
