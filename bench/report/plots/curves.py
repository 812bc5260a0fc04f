"""Accuracy over epochs: on the test set, or on validation images where the runs have them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.lib.stride_tricks import sliding_window_view

from bench.report.curves import Curves, Series, mean, of_runs
from bench.report.frames import CellSummary, Results, done
from bench.report.plots import style
from bench.report.tables import heading

SMOOTHED_FROM = 50  # epochs: shorter curves are drawn as they are, and have no panel for their end
MOST_TOGETHER = 6  # rows in one panel; with more, each group of methods gets a panel of its own
END = 0.6  # where the end of a curve begins if no fall of the learning rate says so, as a share of its epochs
DROP = {"color": "0.55", "linewidth": 0.6, "linestyle": (0, (1, 2))}
MOST_DROPS = 10  # a schedule that falls more often is drawn without verticals

Line = Sequence[CellSummary]


@dataclass(frozen=True)
class _Panel:
    title: str
    lines: Sequence[Line]
    end: bool  # shows the end of the curves only
    band: bool  # from the lowest to the highest seed


def curves(results: Results, read: Curves) -> Figure | None:
    """Means over seeds, a row of panels a pair: whole curves, then their end group by group with bands.

    A long curve is drawn as a running median (`smooth`): at a high learning rate single epochs scatter by
    points, and a dozen methods would hide each other. The last point is the last epoch's own value.
    """
    lines = style.student_lines(results)
    series = {id(s): of_runs(s, read.top1) for line in lines for s in line if s.last.n}
    series = {key: [smooth(points) for points in found] for key, found in series.items() if found}
    drawn = {
        pair: cells
        for pair in results.pairs
        if (cells := [s for line in lines if (s := style.at(line, pair)) and id(s) in series])
    }
    if not drawn:
        return None
    longest = max(max(points) for found in series.values() for points in found)
    specs = _panels(lines, long=longest >= SMOOTHED_FROM)
    figure, grid = _layout(len(drawn), len(specs))
    looks, any_drops = style.looks_of(results), False
    for (pair, cells), panels in zip(drawn.items(), grid, strict=True):
        drops = _drops(cells, read)
        any_drops |= bool(drops)
        found = [points for summary in cells for points in series[id(summary)]]
        for axes, panel in zip(panels, specs, strict=True):
            for line in panel.lines:
                if (summary := style.at(line, pair)) and id(summary) in series:
                    _draw(axes, series[id(summary)], looks[style.row_name(summary)], band=panel.band)
            _limits(axes, found, drops, end=panel.end)
            for epoch in drops:
                axes.axvline(epoch + 0.5, zorder=0, **DROP)
            axes.grid(linewidth=0.4, color="0.9")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _titles(grid, list(drawn), specs)
    part = read.part(run.run_id for cells in drawn.values() for s in cells for run in done(s.runs)[:1])
    figure.supylabel(f"{part} top-1 (%)" + (", running median" if longest >= SMOOTHED_FROM else ""), fontsize=8)
    shown = {style.row_name(s): s.cell.label for cells in drawn.values() for s in cells}
    shown = {name: shown[name] for line in lines if (name := style.row_name(line[0])) in shown}
    handles = [Line2D([], [], label=style.plain(label), **looks[name].line) for name, label in shown.items()]
    if any(len(found) > 1 for found in series.values()):
        handles.append(Patch(facecolor="0.5", alpha=0.3, label="lowest to highest seed"))
    handles += [Line2D([], [], label="the learning rate falls", **DROP)] if any_drops else []
    style.legend_below(figure, handles)
    return figure


def _panels(lines: Sequence[Line], *, long: bool) -> list[_Panel]:
    """What the panels of each pair show."""
    groups = list(dict.fromkeys(line[0].cell.group for line in lines if line[0].cell.role == "method"))
    if len(lines) <= MOST_TOGETHER or len(groups) < 2:
        blocks = {"": lines}
    else:  # the Student row is the yardstick of every panel
        blocks = {
            heading("method", group): [
                line for line in lines if line[0].cell.role == "student" or line[0].cell.group == group
            ]
            for group in groups
        }
    if not long:
        return [_Panel(name, block, end=False, band=True) for name, block in blocks.items()]
    ends = [_Panel(f"{name}, end" if name else "End", block, end=True, band=True) for name, block in blocks.items()]
    return [_Panel("All epochs", lines, end=False, band=False), *ends]


def _layout(pairs: int, panels: int) -> tuple[Figure, list[list[Axes]]]:
    """Axes by pair and panel."""
    if panels > 1:
        figure = style.new_figure(2.45 * panels + 0.7, 1.75 * pairs + 0.4)
        return figure, [list(row) for row in figure.subplots(pairs, panels, squeeze=False, sharex="col")]
    rows = math.ceil(pairs / style.MOST_ABREAST)
    columns = math.ceil(pairs / rows)
    figure = style.new_figure(3.1 * columns + 0.6, 2.4 * rows + 0.4)
    flat = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in flat[pairs:]:
        axes.remove()
    return figure, [[axes] for axes in flat[:pairs]]


def _draw(axes: Axes, found: Sequence[Series], look: style.Look, *, band: bool) -> None:
    middle = mean(found)
    if band and len(found) > 1 and middle:
        low = [min(points[epoch] for points in found) for epoch in middle]
        high = [max(points[epoch] for points in found) for epoch in middle]
        axes.fill_between(list(middle), low, high, color=look.colour, alpha=0.16, linewidth=0)
    point = {"marker": look.marker, "markersize": 3} if len(middle) == 1 else {}
    thinner = {} if band else {"linewidth": 0.7 * look.width}
    axes.plot(list(middle), list(middle.values()), **(look.line | thinner), **point)


def _limits(axes: Axes, found: Sequence[Series], drops: Sequence[int], *, end: bool) -> None:
    """Limits by what all rows of the pair have, so that its panels can be compared.

    The first third climbs from chance; shown whole it would flatten what the plot is for. The end begins at the
    first fall of the learning rate.
    """
    last, first = max(map(max, found)), min(map(min, found))
    if end:
        first = drops[0] if drops else round(END * last)
        settled = first + 2 * (last // SMOOTHED_FROM) + 1  # the running median takes as long to come up
        shown = _values(found, lambda points: settled)
    else:
        shown = _values(found, lambda points: max(points) / 3)
    shown = shown or _values(found, lambda points: -1)
    pad = 0.06 * (max(shown) - min(shown)) + 0.2
    axes.set_ylim(min(shown) - pad, max(shown) + pad)
    margin = 0.01 * max(last - first, 1)
    axes.set_xlim(first - margin, last + margin)


def _values(found: Iterable[Series], after: object) -> list[float]:
    return [value for points in found for epoch, value in points.items() if epoch > after(points)]


def _drops(cells: Sequence[CellSummary], read: Curves) -> list[int]:
    """Epochs after which the learning rate falls, where all rows of the pair agree on them."""
    seen = []
    for summary in cells:
        for rates in of_runs(summary, read.lr)[:1]:
            epochs = list(rates)
            seen.append([a for a, b in pairwise(epochs) if rates[b] < 0.999 * rates[a]])
    agreed = bool(seen) and all(found == seen[0] for found in seen)
    return seen[0] if agreed and len(seen[0]) <= MOST_DROPS else []


def _titles(grid: Sequence[Sequence[Axes]], pairs: Sequence[tuple[str, str]], specs: Sequence[_Panel]) -> None:
    if len(specs) == 1:
        for (axes,), pair in zip(grid, pairs, strict=True):
            axes.set_title(style.pair_name(pair))
            axes.set_xlabel("Epoch")
        return
    for above, below, panel in zip(grid[0], grid[-1], specs, strict=True):
        above.set_title(style.plain(panel.title), weight="bold")
        below.set_xlabel("Epoch")
    for panels, pair in zip(grid, pairs, strict=True):
        panels[0].set_ylabel(style.pair_name(pair, "\n→ "))


def smooth(points: Mapping[int, float]) -> Series:
    """Running median over about a 25th of the epochs.

    It keeps the steps of the learning rate, and narrows at both ends until the first and the last epoch
    stand for themselves.
    """
    epochs = sorted(points)
    values = np.array([points[epoch] for epoch in epochs])
    half = len(values) // SMOOTHED_FROM
    middle = values.copy()
    if half:
        middle[half:-half] = np.median(sliding_window_view(values, 2 * half + 1), axis=1)
    for i in range(1, half):
        middle[i], middle[-1 - i] = np.median(values[: 2 * i + 1]), np.median(values[-1 - 2 * i :])
    return dict(zip(epochs, middle.tolist(), strict=True))
