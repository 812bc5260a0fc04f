"""The report: table.md, table.tex, table.csv, runs.csv and plots, from what the runs' files say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd

from bench import latex, markup, tables
from bench.cells import RunStatus, TableSpec
from bench.comparison import Comparison, compare
from bench.frames import Results, cells_frame, collect, runs_frame
from bench.ranking import Ranking, rank


def write(
    out: Path,
    spec: TableSpec,
    runs: Mapping[str, RunStatus],
    *,
    plots: bool = True,
    now: datetime | None = None,
) -> list[Path]:
    """Write the whole report into `out` and return the files written. Each appears whole or not at all.

    `now` (UTC) is the date printed; default the clock's. With `plots`, plots of an earlier report that these
    runs give no reason to draw are removed, so that no picture contradicts the table beside it.
    """
    now = now or _now()
    results = collect(spec, runs)
    ranking, comparisons = rank(results), compare(results)
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "table.md": markdown_report(results, ranking, comparisons, now),
        "table.tex": latex_report(results, ranking, comparisons, now),
        "table.csv": csv(table_frame(results, ranking, comparisons)),
        "runs.csv": csv(runs_frame(results)),
    }
    written = [_write_whole(out / name, text.encode()) for name, text in texts.items()]
    if plots:
        from bench.plots import draw  # matplotlib takes a second to import, and only this needs it

        folder = out / "plots"
        for name, images in draw(results, comparisons, runs).items():
            for kind, image in images.items():
                path = folder / f"{name}.{kind}"
                if image is None:
                    path.unlink(missing_ok=True)
                else:
                    folder.mkdir(exist_ok=True)
                    written.append(_write_whole(path, image))
    return written


def terminal(spec: TableSpec, runs: Mapping[str, RunStatus], *, now: datetime | None = None) -> str:
    """The results table and its footer as plain text; a star marks the best."""
    results = collect(spec, runs)
    table = tables.last_table(results, rank(results))
    lines = tables.footer(results, now or _now())
    return "\n".join([markup.plain(table), "", *lines])


def table_frame(results: Results, ranking: Ranking, comparisons: list[Comparison]) -> pd.DataFrame:
    """One row per cell: its numbers, its standing on its pair, each source's number and the difference."""
    frame = cells_frame(results)
    positions = range(len(results.cells))
    frame["best"] = [i in ranking.best for i in positions]
    frame["unseparated"] = [i in ranking.unseparated for i in positions]
    for comparison in comparisons:
        entries, name = comparison.entries, comparison.reference.name
        frame[f"published: {name}"] = [entries[i].published.top1 if i in entries else None for i in positions]
        frame[f"difference: {name}"] = [entries[i].difference if i in entries else None for i in positions]
    return frame


def markdown_report(results: Results, ranking: Ranking, comparisons: list[Comparison], now: datetime) -> str:
    parts = [
        f"# Results: {markup.md(tables.what(results.spec))}",
        markup.markdown(tables.last_table(results, ranking)),
        "## Best epoch",
        markup.markdown(tables.best_table(results)),
        "## Against published numbers",
        *(markup.markdown(table) for table in _published(results, comparisons)),
    ]
    if not comparisons:
        parts.append(markup.md(tables.nothing_published(results.spec)))
    parts.append("## What this table is made of")
    parts.append("\n".join(f"- {markup.md(line)}" for line in tables.footer(results, now)))
    return "\n\n".join(parts) + "\n"


def latex_report(results: Results, ranking: Ranking, comparisons: list[Comparison], now: datetime) -> str:
    made_of = markup.Note("", " ".join(tables.footer(results, now)))
    last, best = tables.last_table(results, ranking), tables.best_table(results)
    floats = [replace(last, notes=(*last.notes, made_of)), best, *_published(results, comparisons)]
    parts = [latex.PREAMBLE, *map(latex.latex, floats)]
    if not comparisons:
        parts.append(f"% {tables.nothing_published(results.spec)}")
    return "\n\n".join([*parts, latex.END]) + "\n"


def csv(frame: pd.DataFrame) -> str:
    """Accuracies to four decimals: a mean over seeds has no more to say."""
    return frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")


def _published(results: Results, comparisons: list[Comparison]) -> list[markup.Table]:
    numbered = enumerate(comparisons, start=1)
    return [tables.published_table(results, comparison, number) for number, comparison in numbered]


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _write_whole(path: Path, content: bytes) -> Path:
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
