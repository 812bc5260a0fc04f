"""The report: table.md, table.tex, CSV files, plots and a page, from what the runs' files say."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd

from bench.cells import Cell, RunStatus, TableSpec
from bench.report import claims as claimcheck
from bench.report import examined, latex, markup, published_tables, tables
from bench.report.captions import CAPTIONS
from bench.report.comparison import Comparison, compare, shown_only
from bench.report.curves import Curves
from bench.report.frames import Results, cells_frame, collect, curves, runs_frame
from bench.report.headline import Headline, headline
from bench.report.markup import Item, Section
from bench.report.page import page
from bench.report.published import Published, Reference
from bench.report.ranking import Ranking, rank
from bench.report.statistics import Aggregate, aggregate
from bench.surroundings.commandline import counted, note

LATEX = "latex"  # the folder of one file a table


@dataclass(frozen=True)
class Report:
    """Everything that the report says, before any notation."""

    results: Results
    ranking: Ranking
    aggregates: tuple[Aggregate, ...]
    verdicts: tuple[claimcheck.Verdict, ...]
    comparisons: tuple[Comparison, ...]
    shown: tuple[tuple[Reference, Mapping[int, Published]], ...]  # published under other protocols
    headline: Headline
    now: datetime  # UTC, the date printed
    columns: tuple[str, ...] = ()  # asked for beside accuracy: names of examined.COLUMNS


def make(
    spec: TableSpec,
    runs: Mapping[str, RunStatus],
    out: Path | None = None,
    now: datetime | None = None,
    columns: Sequence[str] = (),
) -> Report:
    """Work the report out. `out` is the folder of `runs`, looked at for runs of other grids; `now` is for tests."""
    results = collect(spec, runs, out)
    ranking, verdicts = rank(results), tuple(claimcheck.check(results))
    return Report(
        results,
        ranking,
        tuple(aggregate(results)),
        verdicts,
        tuple(compare(results)),
        tuple(shown_only(results)),
        headline(results, ranking, verdicts),
        now or datetime.now(timezone.utc),
        tuple(columns),
    )


def sections(report: Report) -> tuple[Section, ...]:
    """The report in printing order, the same for every notation."""
    results = report.results
    found = [Section("", (tables.last_table(results, report.ranking),))]
    if report.aggregates:
        found.append(Section("Over all pairs", (tables.aggregate_table(results, report.aggregates),)))
    found += _claims(report)
    once = tables.looked_at_once(results)
    if once:
        found.append(Section("Best epoch", items=tuple(Item("", line) for line in once)))
    else:
        best = tables.best_table(results)
        found.append(Section("Best epoch", (best,), fold="The table of best epochs, selected on test data"))
    found.append(_published(report))
    made_of = (Item("", line) for line in tables.footer(results, report.now))
    found += examined.wanted(results, report.columns)
    return (*found, Section("What this table is made of", items=tuple(made_of)))


def write(
    out: Path, report: Report, runs: Mapping[str, RunStatus], *, plots: bool = True, source: Path | None = None
) -> list[Path]:
    """Write the report into `out` and return the files written. Each appears whole or not at all.

    `source` is the results folder, where it is not `out`.
    """
    return [*write_tables(out, report), *write_pictures(out, report, runs, plots=plots, source=source)]


def write_tables(out: Path, report: Report) -> list[Path]:
    """Everything but pictures. Where some of them cannot be written, the others are, before that is raised."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "table.md": markdown_report(report),
        **latex_files(report),
        "table.csv": csv(table_frame(report)),
        "runs.csv": csv(runs_frame(report.results)),
        "published.csv": csv(published_frame(report)),
        "claims.csv": csv(claims_frame(report)),
    }
    written, errors = [], []
    for name, text in texts.items():
        try:
            (out / name).parent.mkdir(exist_ok=True)
            written.append(write_whole(out / name, text.encode()))
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    for path in (out / LATEX).glob("*.tex"):
        # Of a table that there is no more reason for; what a person put there stays.
        if path not in written and path.read_bytes().startswith(latex.comment([latex.USE]).encode()):
            path.unlink()
    return written


def write_pictures(
    out: Path, report: Report, runs: Mapping[str, RunStatus], *, plots: bool = True, source: Path | None = None
) -> list[Path]:
    """The plots and the page. One of them that cannot be made or written costs itself, and is said in a line.

    `source` is the results folder, where it is not `out`. Plots of an earlier report that are not drawn anew are
    removed, without `plots` all of them, so that no picture contradicts the table beside it.
    """
    source = source or out
    written: list[Path] = []
    read, pictures, folder = Curves(curves(runs, source)), {}, out / "plots"
    with _costs_itself("plots"):
        drawn = {}
        if plots:
            from bench.report.plots import draw  # matplotlib takes a second to import, and only this needs it

            drawn = draw(report.results, read, _costs_itself)
        pictures = {name: images["png"] for name, images in drawn.items() if images["png"]}
        for name, images in drawn.items():
            for kind, image in images.items():
                with _costs_itself(f"plots/{name}.{kind}"):
                    if image is not None:
                        folder.mkdir(exist_ok=True)
                        written.append(write_whole(folder / f"{name}.{kind}", image))
    for path in [path for name in CAPTIONS for path in folder.glob(f"{name}.*") if path not in written]:
        with _costs_itself(f"an earlier {path}"):
            path.unlink(missing_ok=True)
    with _costs_itself("report.html"):
        text = page(report.results, report.headline, sections(report), pictures, runs, read, source)
        if source != out:
            text = text.replace('href="runs/', f'href="{Path(os.path.relpath(source, out)).as_posix()}/runs/')
        written.append(write_whole(out / "report.html", text.encode()))
    return written


@contextlib.contextmanager
def _costs_itself(what: str) -> Iterator[None]:
    """Say in a line that something which only shows could not be made, and go on without it."""
    try:
        yield
    except Exception as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        note(f"{what} left out: {why}")


def terminal(report: Report, width: int | None = None, selected: Collection[Cell] | None = None) -> str:
    """What a person sees at the end of a command: the answer, and the results; the rest is in files.

    Of the table only the cells `selected`; None: all.
    """
    results, said = report.results, report.headline
    if selected is not None:
        results = tables.only(results, selected)
    text = " ".join([said.lead, *said.rest])
    parts = [markup.wrap(line, width) for line in (said.title, said.banner, text) if line]
    return "\n\n".join([*parts, markup.plain(tables.last_table(results, report.ranking), width)])


def markdown_report(report: Report) -> str:
    said = report.headline
    parts = [f"# {markup.md(said.title)}", *([f"> {markup.md(said.banner)}"] if said.banner else [])]
    parts.append(f"**{markup.md(said.lead)}**")
    parts += [markup.markdown_list([Item("", line) for line in said.rest])] if said.rest else []
    return "\n\n".join([*parts, *map(markup.markdown_section, sections(report))]) + "\n"


def latex_tables(report: Report) -> dict[str, str]:
    """Each table as a float, by the name of its file; lists are left to the other notations.

    Versions, dates and the like are no part of a paper's table: see `latex_files`.
    """
    archs = [arch for pair in report.results.pairs for arch in pair]
    origin = f" ({tables.what(report.results.spec)})"
    found = [table for section in sections(report) for table in section.tables]
    made = [latex.for_paper(replace(table, caption=table.caption.replace(origin, "")), archs) for table in found]
    return {table.name: latex.latex(table) for table in made}


def latex_files(report: Report) -> dict[str, str]:
    """table.tex, a document with all tables, and a file for each; what they are made of is a comment at their head."""
    made_of, found = tables.footer(report.results, report.now), latex_tables(report)
    document = [latex.comment(made_of), latex.PREAMBLE, *found.values(), latex.END]
    pieces = {
        f"{LATEX}/{name}.tex": f"{latex.comment([latex.USE, *made_of])}\n{text}\n" for name, text in found.items()
    }
    return {"table.tex": "\n\n".join(document) + "\n", **pieces}


def table_frame(report: Report) -> pd.DataFrame:
    """One row per cell: its numbers, its standing on its pair, each source's number and the difference."""
    frame, positions = cells_frame(report.results), range(len(report.results.cells))
    frame["best"] = [i in report.ranking.best for i in positions]
    frame["unseparated"] = [i in report.ranking.unseparated for i in positions]
    for comparison in report.comparisons:
        entries, name = comparison.entries, comparison.reference.name
        frame[f"published: {name}"] = [entries[i].published.top1 if i in entries else None for i in positions]
        frame[f"difference: {name}"] = [entries[i].difference if i in entries else None for i in positions]
    return frame


def published_frame(report: Report) -> pd.DataFrame:
    """One row per published number of a cell of this table; a difference only under the table's own protocol."""
    rows = []
    for comparison in report.comparisons:
        for i, entry in comparison.entries.items():
            same = {
                "measured_n": entry.measured.n,
                "measured_mean": entry.measured.mean,
                "measured_std": entry.measured.std,
                "difference": entry.difference,
                "difference_best": entry.difference_best,
                "far": entry.far,
            }
            rows.append(_published_row(report, i, entry.published) | {"same_protocol": True} | same)
    for _, numbers in report.shown:
        rows += [_published_row(report, i, number) | {"same_protocol": False} for i, number in numbers.items()]
    columns = ("measured_n", "measured_mean", "measured_std", "difference", "difference_best", "far")
    names = [*_published_row(report, 0, None), "same_protocol", *columns] if report.results.cells else []
    return pd.DataFrame(rows, columns=names).astype({"seeds": "Int64", "measured_n": "Int64"} if names else {})


def claims_frame(report: Report) -> pd.DataFrame:
    """One row per claim."""
    names = ("id", "verdict", "text", "source", "protocol", "why", "printed")
    rows = [[getattr(verdict, name) for name in names] for verdict in report.verdicts]
    return pd.DataFrame(rows, columns=list(names))


def csv(frame: pd.DataFrame) -> str:
    """Accuracies to four decimals: a mean over seeds has no more to say."""
    return frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")


def write_whole(path: Path, content: bytes) -> Path:
    """Write under a temporary name beside it, sync, rename: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _published(report: Report) -> Section:
    results = report.results
    numbered = enumerate(report.comparisons, start=1)
    found = [published_tables.published_table(results, comparison, number) for number, comparison in numbered]
    nothing = "" if report.comparisons else published_tables.nothing_published(results.spec)
    if report.shown:
        shown = published_tables.shown_table(results, report.shown)
        found.append(replace(shown, notes=(*shown.notes, markup.Note("", nothing))) if nothing else shown)
    items = (Item("", nothing),) if nothing and not report.shown else ()
    count = sum(len(comparison.entries) for comparison in report.comparisons)
    elsewhere = sum(len(numbers) for _, numbers in report.shown)
    parts = [f"{counted(count, 'number')} under this protocol, beside these runs"] if count else []
    parts += [f"{elsewhere} under other protocols, for orientation"] if elsewhere else []
    return Section("Against published numbers", tuple(found), items, fold="; ".join(parts) if found else "")


def _published_row(report: Report, i: int, number: Published | None) -> dict[str, object]:
    cell = report.results.cells[i].cell
    names = ("source", "protocol", "statistic", "seeds", "top1", "confirmed", "note")
    return {
        **{name: getattr(cell, name) for name in ("label", "method", "teacher", "student")},
        **{name: getattr(number, name, None) for name in names},
    }


def _claims(report: Report) -> Iterable[Section]:
    """Claims about other training than that of this table apart: these runs cannot settle those."""
    protocol = report.results.spec.protocol
    notes = tuple(Item("", note) for note in claimcheck.notes(report.results))
    own = [verdict for verdict in report.verdicts if verdict.protocol == protocol]
    others = [verdict for verdict in report.verdicts if verdict.protocol != protocol]
    count = f"Claims made under protocol {protocol}: {_count(own)}." if own else ""
    first = (Item("", count),) if count else ()
    yield Section("Claims", items=(*first, *map(_verdict, own), *notes))
    if others:
        count = f"Made under other protocols, for orientation only: {_count(others)}"
        yield Section("Claims of other protocols", items=tuple(map(_verdict, others)), fold=count)


def _verdict(verdict: claimcheck.Verdict) -> Item:
    body = f"{verdict.text} ({verdict.source}). {verdict.why}"
    return Item(verdict.verdict, body, tuple(verdict.evidence), verdict.text)


def _count(verdicts: Iterable[claimcheck.Verdict]) -> str:
    counts = Counter(verdict.verdict for verdict in verdicts)
    return ", ".join(f"{counts[name]} {name}" for name in ("confirmed", "refuted", "undecided"))
