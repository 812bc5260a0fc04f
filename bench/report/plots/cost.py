"""Accuracy against what a run costs by itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bench.report.frames import CellSummary, Results, done, percent
from bench.report.plots import style

MINUTES_BELOW_S = 2 * 3600  # a plot whose longest run is shorter counts in minutes


def cost(results: Results) -> Figure | None:
    """Last-epoch accuracy over training time, a panel per pair; both are means over the seeds that have both.

    The time is what a run takes of the device alone, whatever it shared. Older results know wall time only, which other
    work disturbed: then nothing is said to be cheaper.
    """
    lines = style.student_lines(results)
    timed = {id(s): found for line in lines for s in line if (found := _timed(s))}
    known = Counter(s.column for line in lines for s in line if id(s) in timed)
    pairs = [pair for pair in results.pairs if known[pair] > 1]  # a single point has nothing to be compared with
    if not pairs:
        return None
    looks, shown, teachers = style.looks_of(results), {}, False
    longest = max(s for found in timed.values() for s, _ in found)
    unit, name = (60.0, "minutes") if longest < MINUTES_BELOW_S else (3600.0, "hours")
    runs = [run for line in lines for s in line if id(s) in timed for run in done(s.runs) if run.train_s]
    devices = sorted({run.device for run in runs} - {""})
    alone = all(run.alone_s for run in runs)
    compared = alone and len(devices) < 2
    figure, panels = style.panels_by_pair(pairs, 2.9, 2.3)
    for pair, axes in panels.items():
        points = []
        for line in lines:
            summary = style.at(line, pair)
            if summary is None or id(summary) not in timed:
                continue
            row, found = style.row_name(summary), timed[id(summary)]
            shown[row] = summary.cell.label
            x = math.fsum(seconds for seconds, _ in found) / len(found) / unit
            accuracies = [top1 for _, top1 in found]
            y = math.fsum(accuracies) / len(accuracies)
            axes.plot([x, x], [min(accuracies), max(accuracies)], color=looks[row].colour, linewidth=0.9, zorder=2)
            axes.plot(x, y, zorder=3, **looks[row].point)
            points.append((x, y))
        if compared:
            _frontier(axes, points)
        teachers |= _teacher(axes, results, pair, [y for _, y in points])
        axes.grid(linewidth=0.4, color="0.9")
        axes.margins(x=0.08, y=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    if len(devices) > 1:
        more = f" and {len(devices) - 3} more" if len(devices) > 3 else ""
        where = f"times of different devices, not comparable: {', '.join(devices[:3])}{more}"
    else:
        where = f"measured on {devices[0]}" if devices else ""
    if where:
        figure.suptitle(style.plain(where), fontsize=7.5, color="0.3")
    what = f"device time of a run alone ({name})" if alone else f"wall time of a run ({name})"
    style.label_axes(panels, what, "Top-1 at the last epoch (%)")
    handles = [Line2D([], [], label=style.plain(label), **looks[row].point) for row, label in shown.items()]
    if compared:
        handles.append(Line2D([], [], label="nothing cheaper is better", color="0.7", linewidth=1))
    if any(len(found) > 1 for found in timed.values()):
        upright = {"linestyle": "", "marker": "|", "markersize": 9, "markeredgewidth": 0.9}
        handles.append(Line2D([], [], label="lowest to highest seed", color="0.3", **upright))
    if teachers:
        handles.append(Line2D([], [], label="Teacher", **style.TEACHER.line))
    style.legend_below(figure, handles)
    return figure


def _timed(summary: CellSummary) -> list[tuple[float, float]]:
    """(training time in s, top-1) of each finished run that took any: a checkpoint took none."""
    return [(run.alone_s or run.train_s, run.top1_last) for run in done(summary.runs) if run.train_s]


def _frontier(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    best, steps = -math.inf, []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if y > best:
            best = y
            steps.append((x, y))
    axes.step(*zip(*steps, strict=True), where="post", color="0.7", linewidth=1, zorder=1)


def _teacher(axes: Axes, results: Results, pair: tuple[str, str], others: Sequence[float]) -> bool:
    """Whether there is one that there was room to draw."""
    drawn = False
    for summary in results.cells:
        mean = summary.last.mean
        if summary.cell.role != "teacher" or summary.column != pair or mean is None:
            continue
        if style.far_off(mean, others):
            above = mean > max(others)
            words = [f"Teacher {percent(mean)}"]
            style.beyond(axes, [] if above else words, words if above else [], "↓↑")
        else:
            axes.axhline(mean, zorder=0, **style.TEACHER.line)
            drawn = True
    return drawn
