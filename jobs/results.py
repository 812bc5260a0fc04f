"""The report and the comparison of results folders, from their files alone: nothing here imports torch."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from bench.commandline import DONE
from bench.report import compare as comparison
from bench.report import frames
from bench.report import writing as reports
from jobs import states
from jobs.states import Outline
from zoo.errors import BadInput

T = TypeVar("T")


def report(outline: Outline, out: Path, only: Iterable[str] = (), *, plots: bool = True) -> int:
    """Write the report into `out` and print its tables; returns the exit status."""
    found = states.look(outline, out, only, to_start=False)
    made = reports.make(outline, found.statuses, out)
    written, fault = [], None
    try:
        written += _writing(lambda: reports.write_tables(out, made), out)
    except BadInput as error:
        fault = error
    print(reports.terminal(made, _width()), flush=True)  # before what takes long, and may fail
    written += reports.write_pictures(out, made, found.statuses, plots=plots)
    if fault:
        raise fault
    tables = [path for path in written if path.parent == out]
    print(
        f"\nwrote {', '.join(str(path) for path in tables)}"
        + (f" and {len(written) - len(tables)} plots in {out / 'plots'}" if len(written) > len(tables) else "")
    )
    return states.exit_status(found)


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
