"""Accuracy per pair: every seed a point."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.report.comparison import Comparison
from bench.report.frames import CellSummary, Results, done, percent
from bench.report.plots import style
from bench.report.published import Reference
from bench.report.tables import SIGNS

SEED = {"linestyle": "", "marker": "o", "markersize": 3.4, "markeredgewidth": 0}
MEAN = {"linestyle": "", "marker": "|", "markersize": 11, "markeredgewidth": 1.8}
OPEN = {"linestyle": "", "color": "none", "markeredgecolor": "0.25", "markersize": 4.6, "markeredgewidth": 0.8}
OPEN_MARKERS = ("D", "s", "^", "o", "v", "p", "h")
ROOM = 0.35  # of a panel, for the words of an unfinished row
BASELINES = {"student": style.STUDENT, "teacher": style.TEACHER}


def accuracy(results: Results, comparisons: Sequence[Comparison]) -> Figure | None:
    """Last-epoch accuracy, a panel a pair: seeds are points, means ticks, published numbers open markers."""
    if not any(summary.last.n for summary in results.cells):
        return None
    lines, looks = style.method_lines(results), style.looks_of(results)
    height = 0.6 + 0.19 * max(len(lines), 3)
    figure, panels = style.panels_by_pair(results.pairs, width=2.9, height=height, sharey=True)
    handles = [Line2D([], [], color="0.3", label="one seed", **SEED)]
    if any(summary.last.n > 1 for line in lines for summary in line):
        handles.append(Line2D([], [], color="0.3", label="mean", **MEAN))
    tops = {pair: [] for pair in results.pairs}
    for line in lines:
        for summary in line:
            tops[summary.column] += [run.top1_last for run in done(summary.runs)]
    outside = {pair: ([], []) for pair in results.pairs}  # words for baselines below and above what a panel shows
    for role, look in BASELINES.items():
        means = [(s.column, s.last.mean) for s in results.cells if s.cell.role == role and s.last.n]
        drawn = [_baseline(panels[pair], role, mean, look, tops[pair], outside[pair]) for pair, mean in means]
        several = any(s.last.n > 1 for s in results.cells if s.cell.role == role)
        label = f"{role.capitalize()}{' (mean)' if several else ''}"
        handles += [Line2D([], [], label=label, **look.line)] if any(drawn) else []
    for y, line in enumerate(lines):
        for summary in line:
            _row(panels[summary.column], y, summary, looks[style.row_name(summary)].colour)
    place = {id(summary): y for y, line in enumerate(lines) for summary in line}
    published: dict[int, list[float]] = {}
    # A best epoch is no point of this axis.
    for k, comparison in enumerate(one for one in comparisons if one.reference.statistic != "best"):
        marker = OPEN | {"marker": OPEN_MARKERS[k % len(OPEN_MARKERS)]}
        drawn = False
        for i, entry in comparison.entries.items():
            if (summary := results.cells[i]).cell.role == "method":
                panels[summary.column].plot(entry.published.top1, place[id(summary)], zorder=2, **marker)
                published.setdefault(id(summary), []).append(entry.published.top1)
                drawn = True
        handles += [Line2D([], [], label=_published(comparison.reference), **marker)] if drawn else []
    for pair, axes in panels.items():
        style.beyond(axes, *outside[pair], "←→")
        axes.set_yticks(range(len(lines)), [style.plain(line[0].cell.label) for line in lines])
        axes.set_ylim(max(len(lines), 1) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", linewidth=0.4, color="0.88")
        axes.margins(x=0.06)
        for y in style.group_breaks(lines):
            axes.axhline(y, color="0.8", linewidth=0.6, zorder=0)
    for y, line in enumerate(lines):
        for summary in line:
            if summary.last.mean is None:
                _sign(panels[summary.column], y, SIGNS[summary.state], published.get(id(summary), []))
    style.label_axes(panels, "Top-1 at the last epoch (%)")
    style.legend_below(figure, handles)
    return figure


def _row(axes: Axes, y: int, summary: CellSummary, colour: str) -> None:
    points = [run.top1_last for run in done(summary.runs)]
    axes.plot(points, [y] * len(points), color=colour, alpha=0.75, zorder=3, **SEED)
    if len(points) > 1:
        axes.plot(summary.last.mean, y, color=colour, zorder=4, **MEAN)


def _sign(axes: Axes, y: int, words: str, published: list[float]) -> None:
    """Why a row has no points; at the left, or at the right where a published number is in the way."""
    low, high = axes.get_xlim()
    left = all(top1 > low + ROOM * (high - low) for top1 in published)
    axes.text(
        **({"x": 0.02, "ha": "left"} if left else {"x": 0.98, "ha": "right"}),
        y=y,
        s=words,
        transform=axes.get_yaxis_transform(),  # no accuracy is claimed
        va="center",
        fontsize=6.5,
        color="0.4",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        zorder=5,
    )


def _baseline(
    axes: Axes, role: str, mean: float, look: style.Look, others: list[float], outside: tuple[list[str], list[str]]
) -> bool:
    """Whether there was room to draw it; if not, `outside` says where it is."""
    if not others or not style.far_off(mean, others):
        axes.axvline(mean, zorder=1, **look.line)
        return True
    outside[mean > max(others)].append(f"{role.capitalize()} {percent(mean)}")
    return False


def _published(reference: Reference) -> str:
    return style.plain(f"published: {reference.source}\n({reference.statistic_words})")
