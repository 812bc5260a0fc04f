"""Heat maps, method x pair: gain over the Student row, and measured minus published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from bench.report import statistics
from bench.report.comparison import Comparison
from bench.report.frames import CellSummary, Results, signed
from bench.report.plots import style
from bench.report.statistics import Aggregate, Gain
from bench.report.tables import SIGNS

COLOURS = "RdBu"  # blue is above, red below: apart for the colour-blind, and every number has its sign
LEAST_RANGE = 2.0  # points at the end of the colours: what is within the spread of seeds stays pale
DARK = 0.62  # of the range: beyond it text is white
UNRANKED = 0.45  # opacity of a mean over other pairs than the rest
NOTHING, HATCH = "0.93", "////"


def gain(results: Results) -> Figure | None:
    """Mean paired gain over the Student row with its interval; at the right the mean over pairs.

    A heat map, because the questions are "which method, on which pair, how much": the colour answers the first two
    at a glance, the printed number the third.
    """
    lines = style.method_lines(results)
    gains = {id(results.cells[i]): found for i, found in statistics.gains(results).items()}
    if not any(id(summary) in gains for line in lines for summary in line):
        return None
    totals = _totals(results, lines) if len(results.pairs) > 1 else {}
    wide, high = 0.78 * len(results.pairs), 0.29 * len(lines)
    figure = style.new_figure(1.3 + wide + (2.9 if totals else 0) + 0.9, high + 1.1)
    ratios = [wide, 2.3] if totals else [wide]
    axes, *right = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    values = np.full((len(lines), len(results.pairs)), np.nan)
    for y, line in enumerate(lines):
        for summary in line:
            x = results.pairs.index(summary.column)
            if id(summary) in gains:
                values[y, x] = gains[id(summary)].mean
            else:
                words = SIGNS.get(summary.state) or _unpaired(summary)
                axes.text(x, y, words, ha="center", va="center", fontsize=6, color="0.35")
    limit = max(LEAST_RANGE, float(np.nanmax(np.abs(values))))
    image = _heat(axes, values, limit)
    for y, line in enumerate(lines):
        for summary in line:
            if id(summary) in gains:
                _gain_text(axes, results.pairs.index(summary.column), y, gains[id(summary)], limit)
    _ticks(axes, [line[0].cell.label for line in lines], results.pairs)
    for y in style.group_breaks(lines):
        axes.axhline(y, color="black", linewidth=0.8)
    if totals:
        _forest(right[0], lines, totals, style.looks_of(results), len(results.pairs))
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=min(1.0, 3.5 / wide), aspect=30, pad=0.03)
    several = any(found.interval for found in gains.values())
    interval = "\n±: half the 95 % interval; bold: it leaves out 0" if several else "\none seed: no intervals"
    bar.set_label(f"gain over the Student row (points of top-1){interval}")
    bar.outline.set_visible(False)
    return figure


def _unpaired(summary: CellSummary) -> str:
    """Why a cell with finished runs has no gain."""
    return "no Student" if summary.last.complete else f"{summary.last.n}/{summary.last.wanted} seeds"


def _gain_text(axes: Axes, x: int, y: int, found: Gain, limit: float) -> None:
    colour = "white" if abs(found.mean) > DARK * limit else "black"
    interval = found.interval
    if interval is None:
        axes.text(x, y, signed(found.mean), ha="center", va="center", fontsize=7, color=colour)
        return
    weight = "bold" if interval.low > 0 or interval.high < 0 else "normal"
    axes.text(x, y - 0.14, signed(found.mean), ha="center", va="center", fontsize=7, color=colour, weight=weight)
    half = f"±{(interval.high - interval.low) / 2:.2f}"
    axes.text(x, y + 0.26, half, ha="center", va="center", fontsize=5, color=colour)


def _totals(results: Results, lines: Sequence[Sequence[CellSummary]]) -> dict[int, Aggregate]:
    """The aggregate of each row, by its place; a label that several rows have belongs to none of them."""
    labels = [line[0].cell.label for line in lines]
    found = {aggregate.label: aggregate for aggregate in statistics.aggregate(results)}
    return {y: found[label] for y, label in enumerate(labels) if label in found and labels.count(label) == 1}


def _forest(
    axes: Axes,
    lines: Sequence[Sequence[CellSummary]],
    totals: Mapping[int, Aggregate],
    looks: Mapping[style.RowName, style.Look],
    pairs: int,
) -> None:
    """Mean gain over pairs with its interval, a row a method, in step with the heat map."""
    axes.axvline(0, linewidth=0.8, color="0.4", zorder=0)
    for y, total in totals.items():
        look = looks[style.row_name(lines[y][0])]
        shade = 1.0 if total.ranked else UNRANKED
        if total.interval:
            ends = [total.interval.low, total.interval.high]
            axes.plot(ends, [y, y], color=look.colour, linewidth=1.6, alpha=shade)
        axes.plot(total.gain, y, color=look.colour, alpha=shade, **look.point)
        few = "" if len(total.pairs) == pairs else f" ({len(total.pairs)}/{pairs} pairs)"
        words = signed(total.gain) + few
        axes.text(1.02, y, words, transform=axes.get_yaxis_transform(), va="center", fontsize=7, alpha=shade)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", linewidth=0.4, color="0.88")
    axes.margins(x=0.08)
    pale = not all(total.ranked for total in totals.values())
    axes.set_xlabel(
        "mean over pairs (points), 95 % interval" + ("\npale: over other pairs than the rest" if pale else "")
    )
    for y in style.group_breaks(lines):
        axes.axhline(y, color="black", linewidth=0.8)


def difference(results: Results, comparisons: Sequence[Comparison]) -> Figure | None:
    """Measured minus published as a heat map, one panel a source, zero in the middle of the colours."""
    covered = {results.cells[i].column for comparison in comparisons for i in _subtracted(comparison)}
    columns = [pair for pair in results.pairs if pair in covered]
    if not columns:
        return None
    comparisons = [comparison for comparison in comparisons if any(True for _ in _subtracted(comparison))]
    rows = [_lines_of(results, comparison) for comparison in comparisons]
    limit = max(LEAST_RANGE, *(abs(c.entries[i].difference) for c in comparisons for i in _subtracted(c)))
    title = 1.0 + style.LETTER_INCHES * max(len(comparison.reference.name) for comparison in comparisons)
    heights = [len(lines) for lines in rows]
    height = 1.0 + 0.24 * sum(heights) + 0.32 * len(rows)
    figure = style.new_figure(max(title, 2.6 + 0.85 * len(columns)), height)
    panels = list(figure.subplots(len(rows), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0])
    for axes, comparison, lines in zip(panels, comparisons, rows, strict=True):
        image = _difference_panel(axes, results, comparison, lines, columns, limit)
    bar = figure.colorbar(image, ax=panels, shrink=min(1.0, 2.5 / height), aspect=18, pad=0.02)
    bar.outline.set_visible(False)
    judged = any(entry.far is not None for comparison in comparisons for entry in comparison.entries.values())
    bar.set_label("measured − published (points of top-1)" + ("\nbold: beyond 0.5 points and 2 std" if judged else ""))
    inside = [[e for i, e in c.entries.items() if results.cells[i].column in columns] for c in comparisons]
    legend = []
    if any(entry.difference is None for entries in inside for entry in entries):
        legend.append(Patch(facecolor="white", edgecolor="0.6", hatch=HATCH, label="published, not measured here"))
    if any(len(entries) < len(lines) * len(columns) for entries, lines in zip(inside, rows, strict=True)):
        legend.append(Patch(facecolor=NOTHING, label="not published"))
    if legend:
        style.legend_below(figure, legend)
    return figure


def _difference_panel(
    axes: Axes,
    results: Results,
    comparison: Comparison,
    lines: Sequence[Sequence[CellSummary]],
    columns: Sequence[tuple[str, str]],
    limit: float,
) -> object:
    entries = {id(results.cells[i]): entry for i, entry in comparison.entries.items()}
    values = np.full((len(lines), len(columns)), np.nan)
    texts = []
    for y, line in enumerate(lines):
        for summary in line:
            entry = entries.get(id(summary))
            if entry is None or summary.column not in columns:
                continue
            x = columns.index(summary.column)
            if entry.difference is None:
                hatched = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="white", edgecolor="0.6", linewidth=0)
                axes.add_patch(hatched).set_hatch(HATCH)
            else:
                values[y, x] = entry.difference
                texts.append((x, y, entry))
    image = _heat(axes, values, limit)
    for x, y, entry in texts:
        shade = "white" if abs(entry.difference) > DARK * limit else "black"
        weight = "bold" if entry.far else "normal"
        words = signed(entry.difference)
        axes.text(x, y, words, ha="center", va="center", fontsize=7, color=shade, weight=weight)
    _ticks(axes, [line[0].cell.label for line in lines], columns)
    axes.set_title(style.plain(comparison.reference.name), loc="left")
    return image


def _subtracted(comparison: Comparison) -> list[int]:
    return [i for i, entry in comparison.entries.items() if entry.difference is not None]


def _lines_of(results: Results, comparison: Comparison) -> list[tuple[CellSummary, ...]]:
    published = {id(results.cells[i]) for i in comparison.entries}
    return [line for line in results.lines if any(id(summary) in published for summary in line)]


def _heat(axes: Axes, values: np.ndarray, limit: float) -> object:
    axes.set_facecolor(NOTHING)
    axes.spines[:].set_visible(False)
    image = axes.imshow(values, cmap=COLOURS, vmin=-limit, vmax=limit, aspect="auto")
    for x in range(1, values.shape[1]):
        axes.axvline(x - 0.5, color="white", linewidth=1)
    for y in range(1, values.shape[0]):
        axes.axhline(y - 0.5, color="white", linewidth=1)
    return image


def _ticks(axes: Axes, labels: Sequence[str], columns: Sequence[tuple[str, str]]) -> None:
    axes.set_yticks(range(len(labels)), [style.plain(label) for label in labels])
    names = [style.pair_name(pair, "\n→ ") for pair in columns]
    axes.set_xticks(range(len(columns)), names, fontsize=6.5)
    axes.tick_params(length=0)
