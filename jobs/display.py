"""The live display of a terminal: what is done and left, a bar for runs that train together, and one for all.

`render` says how a `View` looks at a width and a height; `Screen` keeps it at the terminal's bottom, below the lines
that stay.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from bench.surroundings.commandline import counted
from jobs.view import Row, View

LEAST_BAR, MOST_BAR = 8, 40
MOST_NAME = 32
STYLES = {"done": "green", "failed": "bold red", "blocked": "red", "running": "cyan"}
COLUMNS = ("pair", "seed", "methods", "bar", "epoch", "top1", "images_per_s", "left")
HEADINGS = {"pair": "pair", "seed": "seed", "methods": "methods", "epoch": "epoch", "top1": "top-1"}
HEADINGS |= {"images_per_s": "images/s", "left": "left"}
ROOMY, LOW = 16, 8  # lines: below these without a line between what stays and the display, and without a title
DROPPED = ("images_per_s", "methods", "top1", "seed", "bar")  # where it is too narrow, in this order


def render(view: View, width: int, height: int, ascii_only: bool = False) -> RenderableType:
    """At most `height` lines of `width` columns."""
    if ascii_only:
        plain = {"pair": lambda row: row.pair.replace("→", "->"), "top1": lambda row: row.top1.replace("–", "-")}
        rows = [replace(row, **{name: of(row) for name, of in plain.items()}) for row in view.rows]
        view = replace(view, rows=rows)
    head = [Text(), Text(view.title, no_wrap=True, overflow="ellipsis"), *_counts(view, width)]
    if height < ROOMY:
        head = head[2:] if height < LOW else head[1:]
    room = height - len(head) - 2  # the headings of the table, and its last row
    shown = view.rows if len(view.rows) <= room else view.rows[: max(0, room - 1)]
    return Group(*head, _table(view, shown, width, len(view.rows) - len(shown)))


def _counts(view: View, width: int) -> list[Text]:
    """States, time so far and time left: in one line where that fits, else in two."""
    states = Text(no_wrap=True, overflow="ellipsis")
    for state, count in view.counts.items():
        states.append(", " if states else "")
        states.append(f"{count} {state}", style=STYLES.get(state, "") if count else "")
    times = Text(f"{view.elapsed} so far" + (f", {view.left} left" if view.left else ""), no_wrap=True)
    if states.cell_len + 3 + times.cell_len <= width:
        return [Text.assemble(states, "   ", times)]
    return [states, times]


def _table(view: View, rows: Sequence[Row], width: int, more: int = 0) -> Table:
    fields = {name: [_text(row, name) for row in rows] for name in COLUMNS if name not in ("bar", "methods")}
    done, total = view.counts.get("done", 0), sum(view.counts.values())
    last = {
        "pair": f"{done} of {counted(total, 'run')}",
        "epoch": f"{100 * view.fraction:.0f} %",
        "left": view.left_short,
    }
    wide = {
        name: max(map(cell_len, [*texts, HEADINGS[name] if name != "seed" else "", last.get(name, "")]), default=0)
        for name, texts in fields.items()
    }
    wide["pair"] = min(wide["pair"], MOST_NAME)
    wide["methods"], wide["bar"] = max((len(_methods(row.methods, 0)) for row in rows), default=0), LEAST_BAR
    wide["seed"] = max(wide["seed"], 4) if rows else 0
    names = [name for name in COLUMNS if wide[name] and (name == "bar" or rows or last.get(name))]
    for name in DROPPED:
        if sum(wide[n] for n in names) + len(names) - 1 > width and name in names:
            names.remove(name)
    spare = width - sum(wide[n] for n in names) - len(names) + 1
    if spare < 0:
        wide["pair"] = max(4, wide["pair"] + spare)
    elif "methods" in names:  # half of what is free is theirs, as far as they need it
        need = max(len(_methods(row.methods, 1000)) for row in rows)
        given = min(need - wide["methods"], spare - spare // 3)
        wide["methods"] += given
        spare -= given
    if "bar" in names:
        wide["bar"] = min(MOST_BAR, wide["bar"] + max(0, spare))
    right = ("epoch", "top1", "images_per_s", "left")
    table = Table(
        *[
            Column(
                HEADINGS.get(name, ""),
                width=wide[name],
                justify="right" if name in right else "left",
                no_wrap=True,
                overflow="ellipsis",
            )
            for name in names
        ],
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_header=bool(rows),
        header_style="dim",
    )
    for row in rows:
        cells = {name: Text(_text(row, name)) for name in names if name not in ("bar", "methods")}
        cells["bar"] = _bar(row.fraction, wide["bar"])
        cells["methods"] = Text(_methods(row.methods, wide["methods"]))
        table.add_row(*[cells[name] for name in names])
    if more:
        table.add_row(Text(f"and {more} more"))
    cells = {name: Text(last.get(name, ""), style="bold") for name in names}
    cells["bar"] = _bar(view.fraction, wide["bar"])
    table.add_row(*[cells[name] for name in names])
    return table


def _text(row: Row, name: str) -> str:
    return getattr(row, name)


def _bar(fraction: float, width: int) -> ProgressBar:
    return ProgressBar(1.0, min(1.0, fraction), width=width, complete_style="cyan", finished_style="green")


def _methods(names: Sequence[str], width: int) -> str:
    """As many names as fit, and the number of the others; at least that number, or the only name."""
    for shown in range(len(names), 0, -1):
        left = len(names) - shown
        text = ", ".join(names[:shown]) + (f" +{left}" if left else "")
        if len(text) <= width:
            return text
    return names[0] if len(names) == 1 else f"{len(names)} runs"


class _Console(Console):
    """Leaves the cursor where it can be seen: a driver that is killed could not bring it back."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class Screen:
    """The display on standard output, from `start` to `stop`. What others print meanwhile goes above it."""

    def __init__(self) -> None:
        self.console = _Console(file=sys.stdout, markup=False, highlight=False, emoji=False, soft_wrap=True)
        self.stderr: int | None = None  # a file descriptor for the errors of workers
        self._errors: int | None = None
        self._said = b""
        self._live: Live | None = None

    def start(self) -> None:
        both = sys.stderr.isatty()
        if both:
            self._errors, self.stderr = os.pipe()
            os.set_blocking(self._errors, False)
        self._live = Live(
            console=self.console, auto_refresh=False, transient=True, redirect_stderr=both, vertical_overflow="crop"
        )
        self._live.start()

    def show(self, view: View) -> None:
        """Draw anew, with what workers have said since the last time above."""
        self.relay()
        size = self.console.size
        self._live.update(render(view, size.width, size.height - 1, self.console.options.ascii_only), refresh=True)

    def line(self, text: str) -> None:
        """A line that stays."""
        self.console.print(Text(text), soft_wrap=True)

    def relay(self) -> None:
        """Print whole lines of workers."""
        with contextlib.suppress(BlockingIOError):
            while self._errors is not None and (piece := os.read(self._errors, 1 << 16)):
                self._said += piece
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            self.line(line.decode(errors="replace").rpartition("\r")[2])

    def stop(self) -> None:
        """Wipe it. Workers have ended, or write to nobody from now on."""
        if self._live is None:
            return
        self.relay()
        if self._said:
            self.line(self._said.decode(errors="replace"))
        live, self._live = self._live, None
        live.update("")
        live.stop()
        for descriptor in (self.stderr, self._errors):
            if descriptor is not None:
                os.close(descriptor)
        self.stderr = self._errors = None
