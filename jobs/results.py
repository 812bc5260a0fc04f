"""The report and the comparison of results folders, from their files alone: nothing here imports torch."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from bench import store
from bench.report import compare as comparison
from bench.report import frames
from bench.report import writing as reports
from bench.surroundings.commandline import DONE
from jobs import states
from jobs.states import Outline
from zoo.errors import BadInput

T = TypeVar("T")


def report(
    outline: Outline,
    out: Path,
    only: Iterable[str] = (),
    *,
    plots: bool = True,
    refresh: bool = False,
    columns: Sequence[str] = (),
) -> int:
    """Write the report; print the answer, the selected cells and where the rest is. Returns the exit status.

    It lies in `out` itself for the grid that `out` was last used for, where it takes the place of another grid's; that
    one is written below reports/. With `refresh` the reports of all grids that `out` was used for are made again.
    """
    only = list(only)
    place = states.report_place(outline, out)
    for folder, other in states.other_grids(out):
        if folder == place or not (refresh or (place == out and not (folder / "table.md").exists())):
            continue
        try:
            if isinstance(other, BadInput):
                raise other
            found = states.look(other, out, to_start=False)
            _write(reports.make(other, found.statuses, out, columns=columns), out, folder, found, plots)
            print(f"wrote the report of grid {other.grid}, protocol {other.protocol}: {folder / 'table.md'}")
        except BadInput as error:
            print(f"not made again: {error}", file=sys.stderr)
    found = states.look(outline, out, only, to_start=False)
    made = reports.make(outline, found.statuses, out, columns=columns)

    def answer() -> None:
        print()  # between what went before, failures last of all, and the answer
        selected = states.select_cells(outline, only) if only else None
        print(reports.terminal(made, _width(), selected), flush=True)

    written = _write(made, out, place, found, plots, answer)
    if place == out:  # not twice
        shutil.rmtree(store.report_folder(out, outline.grid, outline.protocol), ignore_errors=True)
    files = [path.name for path in written if path.parent == place and path.suffix != ".html"]
    parts = {name: sum(path.parent == place / name for path in written) for name in ("latex", "plots")}
    beside = "".join(f", {count} files in {place / name}" for name, count in parts.items() if count)
    whole = f"\nthe whole report: {place / 'report.html'}" if place / "report.html" in written else ""
    print(f"\nwrote {', '.join(files)} in {place}{beside}{whole}")
    return states.exit_status(found)


def _write(
    made: reports.Report,
    out: Path,
    place: Path,
    found: states.States,
    plots: bool,
    answer: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write tables, `answer`, then what takes long and may fail. Tables that fail are raised last of all."""
    written, fault = [], None
    try:
        written += _writing(lambda: reports.write_tables(place, made), out)
    except BadInput as error:
        fault = error
    answer()
    written += reports.write_pictures(place, made, found.statuses, plots=plots, source=out)
    if fault:
        raise fault
    return written


def compare(outline: Outline, out: Path, other: Path) -> int:
    """Put `out` beside `other`, whose grid is the one it was last used for, else that of `out`."""
    sides = []
    for folder, its in ((out, outline), (other, states.read_kept(other) or outline)):
        statuses = states.look(its, folder, to_start=False).statuses
        sides.append(comparison.Side(str(folder), frames.collect(its, statuses, folder), statuses))
    text = comparison.markdown(*sides, datetime.now(timezone.utc))
    path = out / "compare.md"
    _writing(lambda: reports.write_whole(path, text.encode()), out)
    print(f"{comparison.terminal(*sides, _width())}\n\nwrote {path}")
    return DONE


def _writing(write: Callable[[], T], out: Path) -> T:
    try:
        return write()
    except OSError as error:
        raise BadInput(
            f'cannot write the report to "{out}": {error.strerror}; the results are safe in runs/, '
            "make room or give rights, then --report"
        ) from None


def _width() -> int | None:
    """Of the terminal; None where the output is read by a program, which is better served by whole lines."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
